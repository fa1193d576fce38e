"""Held-out accuracy on fixed prompts, sampled at the training temperature and greedy."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import pyarrow as pa

from tppo_rl.config.options import Options
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.fragments import Fragment, accuracy, concatenate_tables, fragments_from_table
from tppo_rl.core.prompts import Ticket, heldout_tickets
from tppo_rl.core.waiting import Stage, stage, stop_here
from tppo_rl.rollout.asking import ask_each
from tppo_rl.rollout.heartbeats import answered_since, sign_of
from tppo_rl.rollout.rllib_internals import healthy_remote
from tppo_rl.rollout.weight_sync import LogProbDiff, WeightSync

logger = logging.getLogger(__name__)

_ASK_AGAIN_S = 0.5
_COMPARED_EPISODES = 32
"""Held-out episodes on which engine and trainer are compared at each evaluation."""


@dataclass(frozen=True)
class Evaluation:
    """Statistics of the responses to held-out prompts."""

    sampled: dict[str, float]
    """`accuracy_statistics` at the training temperature."""
    greedy: dict[str, float]
    """`accuracy_statistics` of greedy responses."""
    log_prob_diff: LogProbDiff | None = None
    """Engine against trainer. The newest weights sampled every token of these episodes, so both must agree."""
    episodes: tuple[Fragment, ...] = ()
    """The responses at the training temperature, by prompt index; those of all evaluations answer the same prompts."""

    def statistics(self) -> dict[str, dict[str, float]]:
        """Returns both by name, in the form of results."""
        return {"sampled": self.sampled, "greedy": self.greedy}


class HeldoutEvaluator:
    """Answers the same held-out prompts at every evaluation.

    The training env-runners do it while their open episodes are suspended. With `evaluation_num_env_runners` above 0,
    env-runners for evaluations alone do it.

    Args:
        options: Options of the run.
        weights: Brings the newest weights to the engines.
        group: Returns the env-runners to ask, with the newest weights in them or on the way.
        mend: Brings back those of them that are lost, and sends the newest weights to those that it is given.
    """

    def __init__(
        self, options: Options, weights: WeightSync, group: Callable[[], Any], mend: Callable[[Sequence[int]], None]
    ) -> None:
        self.before: dict[str, Any] = {}
        """Statistics of the first evaluation, before any update."""
        self.latest: dict[str, Any] = {}
        """Statistics of the last evaluation."""
        self._interval = options.evaluation.evaluation_interval
        self._counts_tokens = options.evaluation.evaluation_interval_unit == "tokens"
        self._num_prompts = options.evaluation.evaluation_duration
        self._temperature = options.rollout.sampling.temperature
        self._environment = options.environment
        self._weights = weights
        self._group = group
        self._mend = mend
        self._patience_s = options.pipeline.env_runner_timeout_s
        self._silence_s = options.pipeline.heartbeat_timeout_s

    @property
    def counts_tokens(self) -> bool:
        """Whether evaluations are due by sampled tokens; those by iterations are left to RLlib."""
        return bool(self._interval) and self._counts_tokens

    @property
    def is_due_before_training(self) -> bool:
        """Whether the evaluation before the first update is still to be made."""
        return bool(self._interval) and not self.before

    def is_due(self, sampled_before: int, sampled: int) -> bool:
        """Whether an iteration passed an interval, given the run's sampled tokens before and after it."""
        return self._interval is not None and sampled // self._interval > sampled_before // self._interval

    @cached_property
    def _num_greedy_prompts(self) -> int:
        """Greedy responses to one question are all the same, so each is asked at most once."""
        return min(self._num_prompts, num_problems(self._environment, "heldout") or self._num_prompts)

    def run(self) -> Evaluation:
        """Answers all held-out prompts twice: sampled and greedy, where greedily no question is answered more than once.

        Raises:
            ProcessDied: env-runners were lost, and none was back in time.
            StageCut: the user stops the run, or has done so before.
        """
        self._weights.wait_until_delivered()
        group = self._group()
        numbers = {"sampled": self._num_prompts, "greedy": self._num_greedy_prompts}
        sampled, greedy = (
            self._answers(group, how, temperature, numbers[how])
            for how, temperature in (("sampled", self._temperature), ("greedy", 0.0))
        )
        # A prompt that could not be made has an episode without tokens.
        compared = [episode for episode in sampled if len(episode)][:_COMPARED_EPISODES]
        evaluation = Evaluation(
            accuracy_statistics(sampled),
            accuracy_statistics(greedy),
            self._weights.difference_on(compared, self._temperature) if compared else None,
            tuple(sampled),
        )
        self.latest = evaluation.statistics()
        return evaluation

    def _answers(self, group: Any, how: str, temperature: float, num_prompts: int) -> list[Fragment]:
        stop_here()
        words = f"held-out evaluation ({how} answers)"
        with stage(words, total=num_prompts, unit="scored", part="evaluation") as answering:
            return evaluate_heldout(
                group,
                num_prompts=num_prompts,
                temperature=temperature,
                version=self._weights.version,
                mend=self._mend,
                patience_s=self._patience_s,
                silence_s=self._silence_s,
                answering=answering,
            )

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {"before": self.before, "latest": self.latest}

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from what `state` returned."""
        self.before, self.latest = state.get("before", {}), state.get("latest", {})


def evaluate_heldout(
    group: Any,
    *,
    num_prompts: int,
    temperature: float,
    version: int,
    mend: Callable[[Sequence[int]], None],
    patience_s: float,
    silence_s: float,
    answering: Stage,
) -> list[Fragment]:
    """Lets the env-runners of a group answer the first `num_prompts` held-out prompts once.

    What one of them was asked and has not answered, because it was lost or holds other weights after a restart, is asked again.

    Args:
        group: RLlib's EnvRunnerGroup, training or evaluation.
        num_prompts: number of prompts; they are the same for every run and seed.
        temperature: sampling temperature; 0 is greedy.
        version: policy version of the weights that are to answer.
        mend: see `HeldoutEvaluator`.
        patience_s: seconds without an answer after which no more is asked.
        silence_s: seconds without a sign of life after which an env-runner is started anew.
        answering: is told how many are answered, about once a second.

    Returns:
        The episodes as finished fragments, by prompt index.

    Raises:
        ProcessDied: prompts have no answers, and nothing came for `patience_s`.
        Exception: the error of an env-runner.
    """
    missing = list(heldout_tickets(num_prompts))
    episodes: list[Fragment] = []
    latest, warned = time.monotonic(), False
    while True:
        found, outdated = _ask(group, missing, temperature, version, silence_s, answering)
        episodes += found
        answered = {episode.prompt_index for episode in found}
        missing = [ticket for ticket in missing if ticket.prompt_index not in answered]
        if not missing:
            return sorted(episodes, key=lambda episode: episode.prompt_index)
        if found or not warned:
            latest, warned = time.monotonic(), True
            logger.warning(
                "%d of %d held-out prompts have no answer yet, and are asked again", len(missing), num_prompts
            )
        elif time.monotonic() - latest > patience_s:
            raise ProcessDied(
                f"evaluation lost prompts: {len(episodes)} of {num_prompts} were answered, and env-runners failed with the others; "
                f"nothing came for {patience_s:g} s (env_runner_timeout_s); go on from the newest checkpoint, as --resume does"
            )
        mend(outdated)
        stop_here()
        time.sleep(_ASK_AGAIN_S)


def _ask(
    group: Any, tickets: Sequence[Ticket], temperature: float, version: int, silence_s: float, answering: Stage
) -> tuple[list[Fragment], list[int]]:
    """Asks every healthy env-runner for a share, and returns what was answered and whose weights are others.

    Raises:
        Exception: the error of an env-runner.
    """
    env_runners = healthy_remote(group)
    if env_runners is None:
        told = None if answering.watcher is None else answering.advance
        answers = {0: group.local_env_runner.evaluate(tickets, temperature, told, version)}
    else:
        shares = {index: tickets[start :: len(env_runners)] for start, index in enumerate(env_runners)}
        questions = {index: partial(_evaluate, share, temperature, version) for index, share in shares.items()}
        answers = ask_each(group, questions, silence_s, _counting(group, answering, shares))
    for answer in answers.values():
        if isinstance(answer, Exception):
            raise answer
    tables = [table for table in answers.values() if table is not None]
    outdated = [index for index, table in answers.items() if table is None]
    return (fragments_from_table(concatenate_tables(tables)) if tables else []), outdated


def _evaluate(
    tickets: Sequence[Ticket], temperature: float, version: int, env_runner: Any
) -> pa.Table | Exception | None:
    return env_runner.evaluate(tickets, temperature, None, version)


def _counting(group: Any, answering: Stage, shares: Mapping[int, Sequence[Ticket]]) -> Callable[[], None] | None:
    """Returns what tells a stage how many prompts the env-runners have answered; None where nobody watches."""
    if answering.watcher is None:
        return None
    before = {index: sign_of(group, index) for index in shares}

    def tell() -> None:
        answering.advance(sum(answered_since(before[index], sign_of(group, index)) for index in shares))

    return tell


def accuracy_statistics(episodes: Sequence[Fragment]) -> dict[str, float]:
    """Returns statistics of episodes: return, response length, truncated fraction, their number `n`.

    If the environment says which responses are right, accuracy and its standard error are among them.
    """
    lengths = np.array([len(episode.tokens) for episode in episodes], np.float64)
    returns = np.array([episode.rewards.sum() for episode in episodes], np.float64)
    right = accuracy(episodes)
    known = {}
    if right is not None:
        known = {"accuracy": right, "standard_error": float(np.sqrt(right * (1 - right) / len(episodes)))}
    return known | {
        "return_mean": float(returns.mean()),
        "response_length_mean": float(lengths.mean()),
        "response_length_max": float(lengths.max()),
        "truncated_fraction": float(np.mean([episode.truncated for episode in episodes])),
        "n": len(episodes),
    }
