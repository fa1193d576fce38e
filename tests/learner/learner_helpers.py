"""Tiny models and made-up fragments, shared by the learner's tests. No Ray here: spawned processes import it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import NO_VERSION, Fragment
from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.lora import add_adapters
from tppo_rl.learner.models import Critic, Policy, load_causal_lm, transformer_blocks
from tppo_rl.learner.targets import ModelSet, Targets, estimate
from tppo_rl.maths.value_forms import ValueForm

VOCABULARY = 50


def save_tiny_model(folder: Path, *, seed: int = 0) -> str:
    """Saves a random Qwen2 (2 layers, 32 wide) and returns the folder."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
        initializer_range=0.2,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return str(folder)


def load_models(
    folder: str,
    dtype: torch.dtype = torch.float32,
    *,
    value_head: bool = True,
    weights_dtype: torch.dtype = torch.float32,
    lora: dict[str, Any] | None = None,
    form: ValueForm | None = None,
) -> tuple[Policy, Critic]:
    """Loads policy and critic of a form; `value_head` fills the critic's zero head so that its backbone has gradients.

    With `lora` both have adapters, filled so that all of them have gradients.
    """
    policy_model, critic_model = (load_causal_lm(folder, dtype, weights_dtype=weights_dtype) for _ in range(2))
    if lora is not None:
        for model in (policy_model, critic_model):
            add_adapters(model, lora)
            fill_adapters(model)
    policy, critic = Policy(policy_model, dtype), Critic(critic_model, dtype, form)
    if value_head:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            critic.value_head.weight.copy_(torch.randn(critic.value_head.weight.shape, generator=generator) * 0.1)
            critic.value_head.bias.fill_(0.1)
    return policy, critic


def round_norms_of_blocks(model: torch.nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Makes the norms of a model's blocks compute with weights rounded to `dtype`, as sharded models in that dtype do."""
    for block in transformer_blocks(model):
        for module in block.modules():
            if "Norm" in type(module).__name__:
                module.forward = partial(_forward_with_rounded_weights, module, copy.copy(module), dtype)  # type: ignore[assignment]


def _forward_with_rounded_weights(
    module: torch.nn.Module, unchanged: torch.nn.Module, dtype: torch.dtype, inputs: torch.Tensor
) -> Any:
    rounded = {name: parameter.to(dtype).to(inputs.dtype) for name, parameter in module.named_parameters()}
    return torch.func.functional_call(unchanged, rounded, (inputs,))


def fill_adapters(model: torch.nn.Module) -> None:
    """Gives the matrices B, which start at zero, random values."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def make_fragment(
    rng: np.random.Generator,
    *,
    episode_id: int = 0,
    context: int = 5,
    earlier: int = 0,
    tokens: int = 6,
    finished: bool = False,
    turns: bool = False,
    version: int = 0,
    reward: float | None = None,
) -> Fragment:
    """Makes a fragment of random tokens.

    Args:
        rng: Draws tokens, log-probs and the final reward.
        episode_id: As in `Fragment`.
        context: Prompt tokens.
        earlier: Response tokens of earlier windows.
        tokens: Tokens of the window.
        finished: Whether the window terminates the episode with a reward.
        turns: Puts environment text into the earlier windows and into the window.
        version: Of all sampled tokens.
        reward: The final reward, drawn where None.
    """
    num_context = context + earlier
    context_sampled = np.r_[np.zeros(context, np.uint8), np.ones(earlier, np.uint8)]
    sampled = np.ones(tokens, np.uint8)
    if turns:
        sampled[tokens // 2 : tokens // 2 + 2] = 0
        context_sampled[context + earlier // 2 : context + earlier // 2 + 2] = 0
    rewards = np.zeros(tokens, np.float32)
    if finished:
        rewards[np.flatnonzero(sampled)[-1]] = rng.choice([-1.0, 1.0]) if reward is None else reward
    return Fragment(
        episode_id=episode_id,
        prompt_index=episode_id,
        env_runner=0,
        window_index=int(earlier > 0),
        prompt_length=context,
        context=rng.integers(2, VOCABULARY, num_context).astype(np.int32),
        context_sampled=context_sampled,
        context_rewards=np.zeros(num_context, np.float32),
        tokens=rng.integers(2, VOCABULARY, tokens).astype(np.int32),
        sampled=sampled,
        behavior_log_probs=np.where(sampled, np.log(rng.uniform(0.01, 0.2, tokens)), 0.0).astype(np.float32),
        versions=np.where(sampled, version, NO_VERSION).astype(np.int32),
        rewards=rewards,
        terminated=finished,
        truncated=False,
        correct=bool(rewards.sum() > 0) if finished else None,
    )


def make_fragments(seed: int, count: int = 8, **options: Any) -> list[Fragment]:
    """Makes fragments of different lengths, every second one finished, every third one with turns."""
    rng = np.random.default_rng(seed)
    return [
        make_fragment(
            rng,
            **(
                {
                    "episode_id": index,
                    "context": int(rng.integers(1, 9)),
                    "earlier": int(rng.integers(0, 9)),
                    "tokens": int(rng.integers(4, 11)),
                    "finished": index % 2 == 0,
                    "turns": index % 3 == 0,
                }
                | options
            ),
        )
        for index in range(count)
    ]


def windows(seed: int, *, prompt: int = 4, lengths: tuple[int, ...] = (5, 6, 3), turns: bool = False) -> list[Fragment]:
    """Consecutive windows of one episode, the last of them finished; with `turns` each ends in environment text."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(2, VOCABULARY, prompt + sum(lengths)).astype(np.int32)
    sampled = np.r_[np.zeros(prompt, np.uint8), np.ones(sum(lengths), np.uint8)]
    rewards = np.zeros(len(tokens), np.float32)
    stops = prompt + np.cumsum(lengths)
    if turns:
        sampled[stops[:-1] - 1] = 0
    rewards[-1] = 1.0
    fragments = []
    for index, (length, stop) in enumerate(zip(lengths, stops.tolist(), strict=True)):
        start = stop - length
        of_window = sampled[start:stop]
        fragments.append(
            replace(
                make_fragment(rng, episode_id=seed, context=start, tokens=length, finished=index == len(lengths) - 1),
                window_index=index,
                prompt_length=prompt,
                context=tokens[:start],
                context_sampled=sampled[:start],
                tokens=tokens[start:stop],
                sampled=of_window,
                behavior_log_probs=np.where(of_window, np.float32(-2.0), np.float32(0.0)),
                versions=np.where(of_window, 0, NO_VERSION).astype(np.int32),
                rewards=rewards[start:stop],
            )
        )
    return fragments


def estimate_targets(
    critic: Critic,
    batch: TrainBatch,
    options: Options,
    collective: Collective | None = None,
    cache: ContextCache | None = None,
) -> Targets:
    """Runs the learner's stages with a critic and without a reference model."""
    models = ModelSet(None, critic)  # type: ignore[arg-type]
    # Tests of a reference model evaluate it themselves.
    options = options.replace(kl_coef=0.0)
    _, targets = estimate(models, batch, options, collective=collective, cache=cache)
    return targets


def parameters_of(*models: torch.nn.Module) -> torch.Tensor:
    """Returns a copy of all parameters in one vector."""
    return torch.cat([parameter.detach().reshape(-1).clone() for model in models for parameter in model.parameters()])


def split(fragments: Sequence[Fragment], size: int) -> list[list[Fragment]]:
    """Returns the first `size` fragments and the others."""
    return [list(fragments[:size]), list(fragments[size:])]


def run_two_learners(function: Callable[..., None], folder: Path, *arguments: Any, timeout_s: float) -> list[Any]:
    """Calls `function(rank, *arguments, meeting point, results)` in two processes and returns what each has saved.

    Args:
        function: Saves its outcome with `torch.save` as `results.<rank>`.
        folder: Where they meet and save.
        *arguments: Passed on.
        timeout_s: Seconds after which the learners are taken to wait for each other; the test then fails.
    """
    files = (str(folder / "meeting"), str(folder / "result"))
    context = torch.multiprocessing.spawn(function, args=(*arguments, *files), nprocs=2, join=False)
    assert context is not None
    if not context.join(timeout=timeout_s) and not context.join(timeout=5):
        for process in context.processes:
            process.kill()
        pytest.fail("the learners wait for each other")
    return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in (0, 1)]
