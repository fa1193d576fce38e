"""Env-runners without a model, for benchmarks of the driver: as Ray actors, and as a group in this process.

Both run the product's sampler on a `SimulatedEngine` with real prompts and environments. The actors are `VLLMEnvRunner`s
in everything but the engine. What the group in this process spends on sampling it counts, so that a measurement can leave it
out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium

from tppo_rl.base_models import resolve_model
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Engine, Sampling
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost, draw_lognormal_length
from tppo_rl.rollout.simulated_group import SimulatedGroup, SimulatedRunner

MODEL = "tppo_rl/arithmetic-chain"
"""Whose tokenizer is used."""

LENGTH_SIGMA = 1.0
"""Shape of the lognormal distribution of response lengths: a long tail."""
_READY = 0.25
"""Probability that a request is answered by the next poll: some polls fetch few results, as with real env-runners."""
_YOUNG = 1
"""Generations of the garbage collector that are collected once a poll."""


@dataclass(frozen=True)
class RunnerLoad:
    """What every env-runner generates."""

    env: str
    slots: int
    window: int
    mean_length: int
    """Of responses before the cap, tokens."""
    cap: int
    """Of responses, tokens."""
    max_prompt: int
    step_seconds: float
    """Duration of an engine step; slept in actors, not waited for in this process."""


def simulated_engine(*, device: str, engine_args: Mapping[str, Any], seed: int, **_: Any) -> Engine:
    """An engine for the option `engine`: its arguments are `mean_length` and `step_seconds`, its vocabulary that of `MODEL`."""
    chat = Chat.from_pretrained(resolve_model(MODEL))
    return make_engine(
        chat.vocabulary_size, engine_args["mean_length"], seed=seed, step_seconds=engine_args["step_seconds"]
    )


def make_engine(vocabulary_size: int, mean_length: int, *, seed: int, step_seconds: float = 0.0) -> SimulatedEngine:
    """An engine whose requests end at drawn lengths.

    Args:
        vocabulary_size: Tokens are below it.
        mean_length: Of responses, tokens.
        seed: Of the lengths.
        step_seconds: What a step takes, slept.
    """
    # Nobody reads the tokens: which one ends a turn does not matter, and the engine itself says where one ended.
    return SimulatedEngine(
        draw_lognormal_length(mean_length, LENGTH_SIGMA),
        vocabulary_size=vocabulary_size,
        cost=StepCost(base=step_seconds),
        seed=seed,
        sleep=step_seconds > 0,
    )


class MeasuredGroup(SimulatedGroup):
    """A group in this process whose own work can be told from the driver's.

    Args:
        count: Env-runners.
        load: What each of them generates.
        chat: Shared by all of them: loading a tokenizer takes longer than a measurement of a hundred env-runners.
    """

    def __init__(self, count: int, load: RunnerLoad, chat: Chat) -> None:
        self.runner_cpu_seconds = 0.0
        """CPU time of this thread that was the env-runners' work."""
        super().__init__(count, partial(_make_runner, load, chat), ready=_READY)

    def execute(self) -> None:
        started = time.thread_time()
        super().execute()
        gc.collect(_YOUNG)
        self.runner_cpu_seconds += time.thread_time() - started


def _make_runner(load: RunnerLoad, chat: Chat, index: int, restarts: int) -> SimulatedRunner:
    engine = make_engine(chat.vocabulary_size, load.mean_length, seed=index)
    sampler = Sampler(
        engine,
        partial(gymnasium.make, load.env, disable_env_checker=True, split="train"),
        chat,
        num_slots=load.slots,
        limits=EpisodeLimits(load.max_prompt, load.cap, load.window),
        sampling=Sampling(),
        env_runner=index,
    )
    return SimulatedRunner(f"{index}-{restarts}", engine, sampler, version=0)
