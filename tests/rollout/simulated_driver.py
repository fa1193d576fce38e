"""Simulated env-runners of random speed, and the driver's side of sampling with them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import CountingEnv, IntegerChat

from tppo_rl.config.options import Options
from tppo_rl.rollout.controller import RolloutController
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, draw_lognormal_length
from tppo_rl.rollout.simulated_group import SimulatedGroup, SimulatedRunner
from tppo_rl.rollout.sync_rollouts import SyncRollouts


@contextmanager
def without_pauses() -> Iterator[None]:
    """Simulated env-runners need no time: nothing is gained by waiting for them."""
    with pytest.MonkeyPatch.context() as patch:
        clock = SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic)
        patch.setattr("tppo_rl.rollout.controller.time", clock)
        yield


SLOTS = 4
WINDOW = 8
STEPS = 6


def make_runner(
    window: int | None,
    seed: int,
    index: int,
    restarts: int,
    *,
    turns: int = 1,
    make_env: Callable[[], Any] | None = None,
) -> SimulatedRunner:
    engine = SimulatedEngine(draw_lognormal_length(12.0, 1.0), seed=1000 * seed + 100 * index + restarts)
    sampler = Sampler(
        engine,
        make_env or partial(CountingEnv, turns),
        IntegerChat(),  # type: ignore[arg-type]
        num_slots=SLOTS,
        limits=EpisodeLimits(8, 48, window),
        sampling=Sampling(),
        env_runner=index,
    )
    return SimulatedRunner(f"{index}-{restarts}", engine, sampler, version=None if restarts else 0)


def make_group(count: int, seed: int, window: int | None = WINDOW) -> SimulatedGroup:
    return SimulatedGroup(count, partial(make_runner, window, seed), seed=seed)


class SimulatedWeights:
    """Weights reach each env-runner at some later poll."""

    def __init__(self, group: SimulatedGroup) -> None:
        self.version = 0
        self._group = group

    def deliver(self) -> None:
        for runner in self._group.runners.values():
            late = runner is None or runner.version in (None, self.version) or self._group.random.random() < 0.7
            if runner is not None and not late:
                runner.take_weights(self.version)

    def revive(self, env_runner: int) -> None:
        runner = self._group.runners[env_runner]
        if runner is not None:
            runner.take_weights(self.version)

    def check_learners(self) -> None: ...

    def wait_until_delivered(self) -> None:
        for index in self._group.healthy_env_runner_ids():
            self.revive(index)


class LateWeights(SimulatedWeights):
    """As of RLlib's actors: an env-runner takes weights when it has done what it was asked for before."""

    def deliver(self) -> None:
        self._group.fetch_ready_async_reqs(tags="weights", timeout_seconds=0.0)

    def revive(self, env_runner: int) -> None:
        self._group.foreach_env_runner_async(
            "take_weights", "weights", kwargs={"version": self.version}, remote_worker_ids=[env_runner]
        )


class PersistentWeights(LateWeights):
    """What an env-runner could not take is sent again, as the weight sync does."""

    def deliver(self) -> None:
        super().deliver()
        waiting = self._group.requests_in_flight("weights")
        for index, runner in self._group.runners.items():
            if runner is not None and runner.version not in (None, self.version) and not waiting[index]:
                self.revive(index)


def make_controller(
    group: SimulatedGroup,
    *,
    batch: int = 1,
    max_staleness: int = 1,
    weights: SimulatedWeights | None = None,
    **options: Any,
) -> tuple[Any, SimulatedWeights]:
    """A `RolloutController`, or a `SyncRollouts` with `mode: sync`, and its weights."""
    weights = weights or SimulatedWeights(group)
    values = {
        "train_batch_size_per_learner": batch,
        "max_staleness": max_staleness,
        "num_envs_per_env_runner": SLOTS,
        "window_length": WINDOW,
        "engine_steps_per_sample": STEPS,
        "env_runner_timeout_s": 60.0,
    }
    kind = SyncRollouts if options.get("mode") == "sync" else RolloutController
    controller = kind(group, Options.of(values | options), weights, restore=group.revive_all)
    return controller, weights
