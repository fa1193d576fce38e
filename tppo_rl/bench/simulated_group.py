"""Env-runners without a model, for benchmarks of the driver: as Ray actors, and as a group in this process.

Both run the product's sampler on a `SimulatedEngine` with real prompts and environments. The actors are `VLLMEnvRunner`s
in everything but the engine. The group in this process answers to the calls that the pump and the weight sync make to
RLlib's EnvRunnerGroup; what it spends on sampling it counts, so that a measurement can leave it out.
"""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
from ray.rllib.utils.metrics import WEIGHTS_SEQ_NO

from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.rollout.chat import Chat
from tppo_rl.rollout.engine import Engine, Sampling
from tppo_rl.rollout.env_runner import SampleResult, VLLMEnvRunner
from tppo_rl.rollout.pump import REQUESTS_IN_FLIGHT
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, StepCost, draw_lognormal_length

LENGTH_SIGMA = 1.0
"""Shape of the lognormal distribution of response lengths: a long tail."""
_READY_SHARE = 0.25
"""Probability that a request is answered by the next turn: some turns fetch few results, as with real env-runners."""


_YOUNG = 1
"""Generations of the garbage collector that are collected once a turn."""


@dataclass(frozen=True)
class Workload:
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


class SimulatedEnvRunner(VLLMEnvRunner):
    """An env-runner whose engine draws lengths; `config.engine` holds `mean_length` and `step_seconds`."""

    def _build_engine(self) -> Engine:
        engine = self.config.engine
        return make_engine(
            self._chat, engine["mean_length"], seed=self.worker_index, step_seconds=engine["step_seconds"]
        )


def make_engine(chat: Chat, mean_length: int, *, seed: int, step_seconds: float = 0.0) -> SimulatedEngine:
    """An engine whose requests end at drawn lengths.

    Args:
        chat: Of whose vocabulary the tokens are.
        mean_length: Of responses, tokens.
        seed: Of the lengths.
        step_seconds: What a step takes, slept.
    """
    # Nobody reads the tokens: which one ends a turn does not matter, and the engine itself says where one ended.
    return SimulatedEngine(
        draw_lognormal_length(mean_length, LENGTH_SIGMA),
        vocabulary_size=chat.vocabulary_size,
        cost=StepCost(base=step_seconds),
        seed=seed,
        sleep=step_seconds > 0,
    )


class SimulatedRunner:
    """An env-runner without Ray.

    Args:
        index: Of the env-runner.
        workload: What it generates.
        chat: Shared by all of them: loading a tokenizer takes longer than a measurement of a hundred env-runners.
    """

    def __init__(self, index: int, workload: Workload, chat: Chat) -> None:
        self._incarnation = str(index)
        self._engine = make_engine(chat, workload.mean_length, seed=index)
        self._sampler = Sampler(
            self._engine,
            partial(gymnasium.make, workload.env, disable_env_checker=True, split="train"),
            chat,
            num_slots=workload.slots,
            limits=EpisodeLimits(workload.max_prompt, workload.cap, workload.window),
            sampling=Sampling(),
            env_runner=index,
        )

    def set_state(self, *, state: dict[str, Any]) -> None:
        """Takes the version of new weights; there is no model to load them into."""
        self._engine.load_weights({}, state[WEIGHTS_SEQ_NO])

    def sample(self, *, num_engine_steps: int, tickets: Any) -> SampleResult:
        """Takes engine steps and returns the fragments that were closed meanwhile."""
        sampler = self._sampler
        sampler.tickets.extend(tickets)
        fragments = sampler.run(num_engine_steps)
        return SampleResult(
            fragments=table_from_fragments(fragments),
            incarnation=self._incarnation,
            version=self._engine.version,
            num_tokens_sampled=sampler.num_tokens_sampled,
            num_open_tokens=sampler.num_open_tokens,
            oldest_open_version=sampler.oldest_open_version,
            num_waiting_tickets=sampler.num_waiting_tickets,
        )


class SimulatedGroup:
    """RLlib's EnvRunnerGroup as far as the pump and the weight sync call it, in this process.

    Each env-runner executes its calls one after another, in the order in which they were asked for, some turns late.

    Args:
        count: Env-runners.
        workload: What each of them generates.
        chat: Shared by all of them.
    """

    local_env_runner = None

    def __init__(self, count: int, workload: Workload, chat: Chat) -> None:
        self.runner_cpu_seconds = 0.0
        """CPU time of this thread that was the env-runners' work."""
        self._random = random.Random(0)
        self._runners = {index: SimulatedRunner(index, workload, chat) for index in range(1, count + 1)}
        self._calls: dict[int, deque[tuple[str, str, dict[str, Any]]]] = {index: deque() for index in self._runners}
        self._in_flight: dict[str, dict[int, int]] = {}
        self._answers: dict[str, list[tuple[int, Any]]] = {}

    def healthy_env_runner_ids(self) -> list[int]:
        return list(self._runners)

    def num_healthy_remote_workers(self) -> int:
        return len(self._runners)

    def num_in_flight_async_reqs(self, tag: str) -> int:
        return sum(self._in_flight.get(tag, {}).values())

    def foreach_env_runner_async(
        self, func: str, tag: str, *, kwargs: dict[str, Any], remote_worker_ids: list[int]
    ) -> int:
        (index,) = remote_worker_ids
        in_flight = self._in_flight.setdefault(tag, {})
        if in_flight.get(index, 0) >= REQUESTS_IN_FLIGHT:
            return 0
        in_flight[index] = in_flight.get(index, 0) + 1
        self._calls[index].append((func, tag, kwargs))
        return 1

    def fetch_ready_async_reqs(self, *, tags: str, timeout_seconds: float) -> list[tuple[int, Any]]:
        """Lets a share of the env-runners execute one `sample` each; without a timeout none has time to."""
        if timeout_seconds > 0:
            started = time.thread_time()
            for index, calls in self._calls.items():
                if calls and self._random.random() < _READY_SHARE:
                    self._execute(index, calls)
            gc.collect(_YOUNG)
            self.runner_cpu_seconds += time.thread_time() - started
        answers = self._answers.pop(tags, [])
        for index, _ in answers:
            self._in_flight[tags][index] -= 1
        return answers

    def _execute(self, index: int, calls: deque[tuple[str, str, dict[str, Any]]]) -> None:
        """All calls up to the first `sample`, which is what takes time."""
        while calls:
            name, tag, kwargs = calls.popleft()
            self._answers.setdefault(tag, []).append((index, getattr(self._runners[index], name)(**kwargs)))
            if name == "sample":
                return
