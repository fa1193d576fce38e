from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import CountingEnv, IntegerChat

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.plan.lengths import fixed, lognormal
from tppo_rl.plan.pipeline import Pipeline, simulate
from tppo_rl.rollout.controller import RolloutController
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.env_runner import SampleResult
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine

PIPELINE = Pipeline(
    lengths=lognormal(40.0, 1.0, 320),
    window=32,
    slots=32,
    batch_tokens=2048,
    max_staleness=2,
    engine_steps=32,
    step_seconds=3.2e-3,
    weight_seconds=0.0,
    update_seconds=0.0,
    token_seconds=1e-4,
)
"""Both sides take 100 microseconds a token."""


def test_the_slower_side_sets_the_pace() -> None:
    slow_learner = simulate(replace(PIPELINE, token_seconds=4e-4))
    assert slow_learner.seconds_per_token == pytest.approx(4e-4, rel=0.01)
    slow_engine = simulate(replace(PIPELINE, step_seconds=4 * 3.2e-3))
    assert slow_engine.seconds_per_token == pytest.approx(4e-4, rel=0.03)
    assert slow_engine.staleness_mean < slow_learner.staleness_mean
    assert slow_engine.tokens_per_update == pytest.approx(2048, rel=0.02)


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
@pytest.mark.parametrize("token_seconds", [2e-5, 1e-4, 5e-4])
def test_staleness_keeps_its_bound_and_time_cannot_be_less_than_either_side(
    max_staleness: int, token_seconds: float
) -> None:
    result = simulate(replace(PIPELINE, max_staleness=max_staleness, token_seconds=token_seconds, window=64))
    assert 0 <= result.staleness_mean <= result.staleness_max <= max_staleness
    assert result.seconds_per_token >= max(1e-4, token_seconds) * 0.97
    assert result.seconds_per_token <= (1e-4 + token_seconds) * 1.05


def test_more_staleness_never_slows_a_run_down() -> None:
    seconds = [simulate(replace(PIPELINE, max_staleness=bound)).seconds_per_token for bound in (1, 2, 4, 8)]
    assert all(later <= before * 1.02 for before, later in pairwise(seconds))
    assert seconds[0] > 1.2 * seconds[-1]


def test_windows_longer_than_staleness_allows_hold_updates_up() -> None:
    # A batch is 64 steps of all slots; responses of 1024 tokens in one window outlast several.
    long = replace(PIPELINE, lengths=fixed(1024), window=1024)
    assert simulate(long).seconds_per_token > 1.3 * simulate(replace(long, window=32)).seconds_per_token
    assert simulate(long).tokens_per_update > 2048


def test_new_weights_cost_the_engine_their_time() -> None:
    slow = replace(PIPELINE, step_seconds=4 * 3.2e-3)
    waiting = simulate(replace(slow, weight_seconds=0.2)).seconds_per_token - simulate(slow).seconds_per_token
    assert waiting == pytest.approx(0.2 / 2048, rel=0.1)


def test_many_slots_are_stood_for_by_fewer() -> None:
    many = simulate(replace(PIPELINE, slots=320, batch_tokens=20480, token_seconds=4e-5))
    few = simulate(replace(PIPELINE, slots=128, batch_tokens=8192, token_seconds=1e-4))
    assert many.seconds_per_token == pytest.approx(few.seconds_per_token / 2.5)
    assert many.tokens_per_update == pytest.approx(2.5 * few.tokens_per_update)
    assert many.staleness_mean == few.staleness_mean


def test_a_simulation_repeats_itself() -> None:
    assert simulate(PIPELINE) == simulate(PIPELINE)


class Driver:
    """The loop around the real controller, in virtual time: one env-runner, requests and weights in order."""

    def __init__(self, run: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        self.planned = run
        self.now = self.free_at = 0.0
        self.version = self.delivered = self.engine_version = 0
        self.inbox: deque[tuple[str, Any]] = deque()
        self.running: tuple[float, SampleResult] | None = None
        self.engine = SimulatedEngine(run.lengths.draw, seed=0)
        self.sampler = Sampler(
            self.engine,
            CountingEnv,
            IntegerChat(),  # type: ignore[arg-type]
            num_slots=run.slots,
            limits=EpisodeLimits(64, run.lengths.longest, run.window),
            sampling=Sampling(),
            env_runner=1,
        )
        options = Options.of(
            train_batch_size_per_learner=run.batch_tokens,
            max_staleness=run.max_staleness,
            num_envs_per_env_runner=run.slots,
            window_length=run.window,
            max_response_length=run.lengths.longest,
            engine_steps_per_sample=min(run.engine_steps, run.window),
        )
        # It is the group and the weights as well.
        self.controller = RolloutController(self, options, self, restore=lambda: None)
        # Of the controller alone: other threads sleep as well.
        clock = SimpleNamespace(sleep=lambda seconds: self.pass_time(self.now + seconds), monotonic=lambda: self.now)
        monkeypatch.setattr("tppo_rl.rollout.controller.time", clock)

    def run(self, updates: int) -> tuple[float, float, int, float]:
        """Seconds for each token, mean and largest staleness, tokens of an update, without the first third."""
        staleness: list[int] = []
        start, sizes = 0.0, []
        for update in range(updates):
            fragments = self.controller.next_batch()
            tokens = sum(map(len, fragments))
            ends = self.now + self.planned.update_seconds + tokens * self.planned.token_seconds
            while self.now < ends:
                self.controller.poll(min(0.02, ends - self.now))
            self.version += 1
            self.deliver()
            if update < updates // 3:
                start = self.now
                continue
            sizes.append(tokens)
            for fragment in fragments:
                staleness += (self.version - 1 - fragment.versions).tolist()
        seconds = (self.now - start) / sum(sizes)
        return seconds, float(np.mean(staleness)), max(staleness), float(np.mean(sizes))

    def revive(self, env_runner: int) -> None:
        raise AssertionError("nothing is lost here")

    def check_learners(self) -> None: ...

    def wait_until_delivered(self) -> None:
        raise AssertionError("of synchronous runs")

    # RLlib's group

    def healthy_env_runner_ids(self) -> list[int]:
        return [1]

    def num_healthy_remote_workers(self) -> int:
        return 1

    def num_remote_env_runners(self) -> int:
        return 1

    def num_in_flight_async_reqs(self, tag: str) -> int:
        return sum(name == "sample" for name, _ in self.inbox) + (self.running is not None)

    def foreach_env_runner_async(self, name: str, *, tag: str, kwargs: Any, remote_worker_ids: list[int]) -> int:
        self.inbox.append((name, kwargs))
        self.begin_next()
        return 1

    def fetch_ready_async_reqs(self, *, tags: str, timeout_seconds: float) -> list[tuple[int, SampleResult]]:
        until = self.now + timeout_seconds
        self.begin_next()
        if self.running is None or self.running[0] > until + 1e-12:
            self.now = until
            return []
        self.now, result = max(self.now, self.running[0]), self.running[1]
        self.free_at = self.running[0]
        self.running = None
        self.begin_next()
        return [(1, result)]

    def pass_time(self, until: float) -> None:
        self.now = until

    def deliver(self) -> None:
        if self.delivered < self.version:
            self.delivered = self.version
            self.inbox.append(("weights", self.version))
            self.begin_next()

    def begin_next(self) -> None:
        while self.running is None and self.inbox:
            name, content = self.inbox.popleft()
            self.free_at = max(self.free_at, self.now)
            if name == "weights":
                self.engine.load_weights({}, content)
                self.free_at += self.planned.weight_seconds
                continue
            self.sampler.tickets.extend(content["tickets"])
            fragments = self.sampler.run(content["num_engine_steps"])
            result = SampleResult(
                fragments=table_from_fragments(fragments),
                incarnation="1",
                version=self.engine.version,
                num_tokens_sampled=self.sampler.num_tokens_sampled,
                num_open_tokens=self.sampler.num_open_tokens,
                oldest_open_version=self.sampler.oldest_open_version,
                num_waiting_tickets=self.sampler.num_waiting_tickets,
            )
            self.running = (self.free_at + content["num_engine_steps"] * self.planned.step_seconds, result)


@pytest.mark.parametrize("token_seconds", [4e-5, 1e-4, 3e-4], ids=["engine", "balanced", "learner"])
@pytest.mark.parametrize(("window", "max_staleness"), [(16, 2), (64, 1), (320, 3)])
def test_the_real_controller_comes_to_the_same(
    window: int, max_staleness: int, token_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = replace(
        PIPELINE,
        window=window,
        max_staleness=max_staleness,
        token_seconds=token_seconds,
        weight_seconds=0.02,
        max_queued_batches=1.0 if window == 320 else None,
    )
    seconds, mean, largest, tokens = Driver(planned, monkeypatch).run(30)
    result = simulate(planned)
    # Responses are others; where both sides wait for long windows that makes a few per cent.
    assert result.seconds_per_token == pytest.approx(seconds, rel=0.1)
    assert result.staleness_mean == pytest.approx(mean, abs=0.15)
    assert result.staleness_max == largest
    assert result.tokens_per_update == pytest.approx(tokens, rel=0.1)
