"""Answers to prompts that a user types: `tppo-rl chat`. Each prompt stands alone, as in training.

The engine samples as in training. On request every token is shown with its probability and the critic's value of the
state after it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.errors import OptionError
from tppo_rl.core.waiting import stage
from tppo_rl.experiment.sources import exported, options_of_source

_NO_END = "�"
"""What a decoder gives for a part of a character; the next tokens complete it."""


class Token(NamedTuple):
    """One sampled token."""

    text: str
    """What it adds to the answer; empty for the end of the turn and for a part of a character."""
    probability: float
    value: float | None
    """The critic's, of the state after the token; None: not asked for."""


def converse(
    source: str,
    prompts: Iterable[str],
    say: Callable[[str], None],
    *,
    values: Mapping[str, Any],
    overrides: Sequence[str] = (),
    temperature: float | None,
    probabilities: bool,
    critic: bool,
) -> None:
    """Answers prompts until there are no more.

    Args:
        source: See `options_of_source`.
        prompts: One text each; empty ones are passed over.
        say: Gets text as it is sampled.
        values: Options by key.
        overrides: As `key=value`.
        temperature: 0 is greedy; None: that of the training.
        probabilities: Whether to list all tokens with their probabilities after an answer.
        critic: Whether to list them with the critic's values.

    Raises:
        OptionError: an option; or values are asked of a model without a critic.
    """
    options, checkpoint = options_of_source(source, values, overrides)
    if critic and checkpoint is None:
        raise OptionError(f"--values: {source} is a model without a critic; name a checkpoint or a run")
    with ExitStack() as stack:
        value_of = None
        if checkpoint is not None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            options = options.replace(policy_model=str(exported(checkpoint, folder / "model")))
            if critic:
                value_of = _values(checkpoint)
        session = _Session(options, temperature)
        stack.callback(session.stop)
        for prompt in filter(None, map(str.strip, prompts)):
            tokens = []
            for token in session.answer(prompt):
                say(token.text)
                tokens.append(token)
            say("\n")
            if probabilities or value_of is not None:
                say(_table(session.with_values(tokens, value_of)))


class _Session:
    """An engine and the texts around a prompt.

    Args:
        options: Of the model.
        temperature: See `converse`.
    """

    def __init__(self, options: Options, temperature: float | None) -> None:
        from tppo_rl.algorithms.ray_start import quiet_libraries
        from tppo_rl.base_models import resolve_model
        from tppo_rl.rollout.chat import Chat
        from tppo_rl.rollout.engine import Sampling
        from tppo_rl.rollout.vllm_engine import VLLMEngine

        quiet_libraries()
        rollout = options.rollout
        self._chat = Chat.of(options)
        self._earlier = _messages_of(options)
        self._limit = rollout.max_response_length
        self._longest_prompt = rollout.max_prompt_length
        self._sampling = Sampling(rollout.sampling.temperature if temperature is None else temperature)
        self._asked = 0
        self._sequence: list[int] = []
        self._prompt_length = 0
        with stage("starting an engine"):
            self._engine = VLLMEngine(
                resolve_model(str(options.models.policy_model)),
                dtype=options.models.dtype,
                head_dtype=options.models.head_dtype,
                max_model_len=self._longest_prompt + self._limit,
                max_num_seqs=1,
                end_of_turn=self._chat.end_of_turn,
                seed=options.run.seed,
                device=rollout.engine.device or ("cuda" if rollout.num_gpus_per_env_runner else "cpu"),
                engine_args=rollout.engine.arguments,
            )

    def answer(self, prompt: str) -> Iterator[Token]:
        """Gives the tokens of an answer as they are sampled.

        Raises:
            OptionError: the prompt is too long.
        """
        from tppo_rl.rollout.engine import Request

        tokens = self._chat.prompt(prompt, self._earlier)
        if len(tokens) > self._longest_prompt:
            raise OptionError(
                f"max_prompt_length={self._longest_prompt}: the prompt takes {len(tokens)} tokens; set a larger one"
            )
        self._asked += 1
        self._sequence, self._prompt_length = list(tokens), len(tokens)
        self._engine.submit(Request(str(self._asked), tokens, self._limit, self._sampling))
        told, ended = "", False
        while not ended:
            for output in self._engine.step():
                for token, log_prob in zip(output.tokens, output.log_probs, strict=True):
                    self._sequence.append(int(token))
                    text = self._chat.text(self._sequence[self._prompt_length :]).rstrip(_NO_END)
                    yield Token(text[len(told) :], math.exp(log_prob), None)
                    told = text if len(text) > len(told) else told
                ended = output.request_ended

    def with_values(
        self, tokens: Sequence[Token], value_of: Callable[[Sequence[int]], list[float]] | None
    ) -> list[Token]:
        """Adds the critic's values to the tokens of the last answer."""
        if value_of is None:
            return list(tokens)
        values = value_of(self._sequence)[self._prompt_length :]
        return [token._replace(value=value) for token, value in zip(tokens, values, strict=True)]

    def stop(self) -> None:
        self._engine.stop()


def _messages_of(options: Options) -> list[dict[str, str]]:
    """The messages that the run's environment puts before every prompt: system message and examples."""
    if options.environment.env is None:
        return []
    env = make_text_env(options.environment, "heldout")
    try:
        _, info = env.reset(seed=0)
    finally:
        env.close()
    return [dict(message) for message in info.get("messages", ())]


def _values(checkpoint: Path) -> Callable[[Sequence[int]], list[float]]:
    import torch

    from tppo_rl.learner.saved_policy import load_module

    critic = load_module(checkpoint, critic=True).critic
    if critic is None:
        raise OptionError("--values: the run had no critic; leave it out")

    def value_of(tokens: Sequence[int]) -> list[float]:
        with torch.no_grad():
            return [float(value) for value in critic(torch.tensor([list(tokens)]))[0]]

    return value_of


def _table(tokens: Sequence[Token]) -> str:
    lines = []
    for token in tokens:
        value = "" if token.value is None else f"  value {token.value:+.3f}"
        lines.append(f"  {token.probability:6.1%}{value}  {token.text!r}")
    return "\n".join([*lines, ""])
