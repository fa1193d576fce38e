"""The driver's side of sampling against many simulated env-runners of random speed, some of which are lost."""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from typing import Any

import pytest
from helpers import CountingEnv, IntegerChat
from hypothesis import given, settings
from hypothesis import strategies as st
from tppo_rl.rollout.pump import RolloutPump

from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.env_runner import SampleResult
from tppo_rl.rollout.groups import GroupBuffer, sample_groups
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, draw_lognormal_length
from tppo_rl.rollout.train_queue import TrainQueue

SLOTS = 4
WINDOW = 8
STEPS = 6


class SimulatedRunner:
    """An env-runner without Ray: the real sampler on a simulated engine."""

    def __init__(self, index: int, incarnation: int, version: int | None, window: int | None = WINDOW) -> None:
        self.incarnation = f"{index}-{incarnation}"
        self.version = version
        self.engine = SimulatedEngine(draw_lognormal_length(12.0, 1.0), seed=100 * index + incarnation)
        self.sampler = Sampler(
            self.engine,
            CountingEnv,
            IntegerChat(),  # type: ignore[arg-type]
            num_slots=SLOTS,
            limits=EpisodeLimits(8, 48, window),
            sampling=Sampling(),
            env_runner=index,
        )

    def take_weights(self, version: int) -> None:
        self.version = version
        self.engine.load_weights({}, version)

    def sample(self, *, num_engine_steps: int | None, tickets: Any, cut_windows: bool = False) -> SampleResult:
        if self.version is None:
            return SampleResult(table_from_fragments([]), self.incarnation, None)
        self.sampler.tickets.extend(tickets)
        empty = num_engine_steps is None
        fragments = self.sampler.run_until_empty() if empty else self.sampler.run(num_engine_steps)
        if cut_windows:
            fragments += self.sampler.cut_windows()
        return SampleResult(
            fragments=table_from_fragments(fragments),
            incarnation=self.incarnation,
            version=self.version,
            num_tokens_sampled=self.sampler.num_tokens_sampled,
            num_open_tokens=self.sampler.num_open_tokens,
            oldest_open_version=self.sampler.oldest_open_version,
            num_waiting_tickets=self.sampler.num_waiting_tickets,
        )


class SimulatedGroup:
    """RLlib's EnvRunnerGroup as far as the pump calls it; requests are answered in order, some turns late."""

    def __init__(self, count: int, seed: int, window: int | None = WINDOW) -> None:
        self.random = random.Random(seed)
        self.window = window
        self.runners: dict[int, SimulatedRunner | None] = {
            k + 1: SimulatedRunner(k + 1, 0, 0, window) for k in range(count)
        }
        self.pending: dict[int, deque[dict[str, Any]]] = defaultdict(deque)
        self.incarnations = 0

    def healthy_env_runner_ids(self) -> list[int]:
        return [index for index, runner in self.runners.items() if runner is not None]

    def num_healthy_remote_workers(self) -> int:
        return len(self.healthy_env_runner_ids())

    def num_in_flight_async_reqs(self, tag: str) -> int:
        return sum(map(len, self.pending.values()))

    def num_remote_env_runners(self) -> int:
        return len(self.runners)

    def foreach_env_runner_async(self, name: str, *, tag: str, kwargs: Any, remote_worker_ids: list[int]) -> int:
        (index,) = remote_worker_ids
        if len(self.pending[index]) >= 2:
            return 0
        self.pending[index].append(kwargs)
        return 1

    def fetch_ready_async_reqs(self, *, tags: str, timeout_seconds: float) -> list[tuple[int, SampleResult]]:
        results = []
        for index in self.healthy_env_runner_ids():
            while self.pending[index] and self.random.random() < 0.6:
                runner = self.runners[index]
                assert runner is not None
                results.append((index, runner.sample(**self.pending[index].popleft())))
        return results

    def lose(self, index: int) -> None:
        self.runners[index] = None
        self.pending[index].clear()

    def revive_all(self) -> None:
        for index, runner in self.runners.items():
            if runner is None:
                self.incarnations += 1
                self.runners[index] = SimulatedRunner(index, self.incarnations, None, self.window)

    def deliver(self, version: int) -> None:
        """Weights reach each env-runner at some later turn."""
        for runner in self.runners.values():
            late = runner is None or runner.version in (None, version) or self.random.random() < 0.7
            if runner is not None and not late:
                runner.take_weights(version)


def make_pump(
    group: SimulatedGroup,
    *,
    batch: int,
    max_staleness: int,
    patience_s: float = 60.0,
    group_size: int = 1,
    ledger: Ledger | None = None,
) -> Any:
    ledger, queue = ledger or Ledger(seed=0, group_size=group_size), TrainQueue()
    state = {"version": 0}

    def give_weights(index: int) -> None:
        runner = group.runners[index]
        if runner is not None:
            runner.take_weights(state["version"])

    pump = RolloutPump(
        group,
        ledger,
        queue,
        batch_tokens=batch,
        max_staleness=max_staleness,
        num_slots=SLOTS,
        engine_steps=STEPS,
        on_restart=give_weights,
        deliver_weights=lambda: group.deliver(state["version"]),
        restore=group.revive_all,
        patience_s=patience_s,
    )
    return pump, ledger, queue, state


@given(
    runners=st.integers(1, 4),
    batch=st.integers(10, 200),
    max_staleness=st.integers(1, 3),
    losses=st.integers(0, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=40, deadline=None)
def test_batches_keep_the_bound_and_the_ledger_adds_up(
    runners: int, batch: int, max_staleness: int, losses: int, seed: int
) -> None:
    group = SimulatedGroup(runners, seed)
    pump, ledger, queue, state = make_pump(group, batch=batch, max_staleness=max_staleness)
    for update in range(25):
        version = state["version"]
        fragments = pump.batch(version)
        tokens = sum(map(len, fragments))
        assert tokens >= batch
        assert all(version - fragment.oldest_version <= max_staleness for fragment in fragments)
        for _ in range(group.random.randint(0, 3)):
            pump.turn(version, timeout_s=0.0)
        ledger.record_trained(tokens)
        assert ledger.check(queue_tokens=queue.num_tokens).unaccounted == 0
        state["version"] = version + 1
        if update % 8 == 7 and losses:
            losses -= 1
            group.lose(group.random.randint(1, runners))
            group.revive_all()


def test_requests_stop_at_the_limit_and_begin_again_after_an_update() -> None:
    group = SimulatedGroup(2, seed=1)
    pump, _, queue, _ = make_pump(group, batch=100, max_staleness=2)
    for _ in range(200):
        pump.turn(0, timeout_s=0.0)
    full = queue.num_tokens
    assert 200 <= full <= 200 + 2 * 2 * SLOTS * STEPS + 2 * SLOTS * WINDOW
    assert not any(group.pending.values())
    pump.batch(0)
    for _ in range(5):
        pump.turn(1, timeout_s=0.0)
    assert queue.num_tokens > full - 100 - WINDOW


def test_a_turn_sums_up_requests_a_fixed_number_of_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of env-runners, or a turn would be quadratic in it."""
    calls = Counter[int]()
    num_requests = RolloutPump._num_requests

    def counting(pump: RolloutPump) -> int:
        calls[len(pump._runners)] += 1
        return num_requests(pump)

    monkeypatch.setattr(RolloutPump, "_num_requests", counting)
    for count in (2, 40):
        pump, *_ = make_pump(SimulatedGroup(count, seed=8), batch=100 * count, max_staleness=2)
        for runner in range(1, count + 1):
            pump._runners[runner]
        pump.turn(0, timeout_s=0.0)
    assert calls[2] == calls[40] > 0


def test_requests_of_one_turn_count_towards_the_limit() -> None:
    group = SimulatedGroup(6, seed=9)
    pump, *_ = make_pump(group, batch=5 * SLOTS * STEPS, max_staleness=1)
    pump._send_requests(0)
    assert pump._num_requests() == group.num_in_flight_async_reqs("") == 5


def test_a_turn_without_requests_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    group = SimulatedGroup(1, seed=6)
    pump, *_ = make_pump(group, batch=20, max_staleness=1)
    for _ in range(100):
        pump.turn(0, timeout_s=0.0)
    assert not group.pending[1], "the queue must be full"
    pauses: list[float] = []
    monkeypatch.setattr("tppo_rl.rollout.pump.time.sleep", pauses.append)
    pump.turn(0, timeout_s=0.05)
    assert pauses == [0.05]


def test_prompts_of_a_lost_env_runner_are_answered_by_others() -> None:
    group = SimulatedGroup(2, seed=2)
    pump, ledger, _, _ = make_pump(group, batch=300, max_staleness=1)
    pump.batch(0)
    lost = set(ledger._runners[1].leased)
    group.lose(1)
    pump.turn(0, timeout_s=0.0)
    assert lost <= set(ledger._returned) | ledger._runners[2].leased


def test_without_any_env_runner_the_run_gives_up() -> None:
    group = SimulatedGroup(1, seed=3)
    pump, *_ = make_pump(group, batch=50, max_staleness=1, patience_s=0.0)
    group.lose(1)
    with pytest.raises(RuntimeError, match="no env-runner was healthy"):
        pump.batch(0)


def test_an_error_of_an_env_runner_is_raised_here() -> None:
    group = SimulatedGroup(1, seed=4)
    pump, *_ = make_pump(group, batch=50, max_staleness=1)
    failed = SampleResult(table_from_fragments([]), "1-0", 0, error=ValueError("max_prompt_length=2: too short"))
    with pytest.raises(ValueError, match="max_prompt_length=2"):
        pump.take(1, failed)


def test_one_window_of_every_slot_is_one_sync_batch() -> None:
    group = SimulatedGroup(3, seed=5)
    pump, ledger, queue, _ = make_pump(group, batch=1, max_staleness=1)
    for _ in range(3):
        fragments = pump.one_window(WINDOW)
        assert sum(map(len, fragments)) == 3 * SLOTS * WINDOW
        ledger.record_trained(3 * SLOTS * WINDOW)
        assert ledger.check(queue_tokens=queue.num_tokens).in_flight == 0


@pytest.mark.parametrize("num_episodes", [1, 7, 40])
def test_whole_responses_are_as_many_as_were_asked_for(num_episodes: int) -> None:
    group = SimulatedGroup(3, seed=6)
    pump, ledger, queue, _ = make_pump(group, batch=1, max_staleness=1)
    for step in range(3):
        fragments = pump.whole_responses(num_episodes)
        finished = sorted(fragment.episode_id for fragment in fragments if fragment.finished)
        assert finished == list(range(step * num_episodes, (step + 1) * num_episodes))
        ledger.record_trained(sum(map(len, fragments)))
        assert ledger.check(queue_tokens=queue.num_tokens).in_flight == 0


@given(runners=st.integers(1, 3), seed=st.integers(0, 10**6), replace=st.booleans(), resume=st.booleans())
@settings(max_examples=25, deadline=None)
def test_groups_are_trained_once_whatever_is_lost(runners: int, seed: int, replace: bool, resume: bool) -> None:
    """Every prompt's group is trained or dropped once, or waits; none is skipped, and the ledger adds up."""
    size, num_groups = 3, runners * SLOTS // 3 + 1
    group = SimulatedGroup(runners, seed, window=None)
    pump, ledger, queue, _ = make_pump(group, batch=1, max_staleness=1, group_size=size)
    buffer, seen = GroupBuffer(size), Counter[int]()
    fetch = group.fetch_ready_async_reqs

    def losing(**arguments: Any) -> list[tuple[int, SampleResult]]:
        if group.random.random() < 0.1:
            group.lose(group.random.randint(1, runners))
        return fetch(**arguments)

    group.fetch_ready_async_reqs = losing  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tppo_rl.rollout.pump.time.sleep", lambda _: None)
        for update in range(8):
            sample = sample_groups(
                lambda count: pump.whole_responses(count),  # noqa: B023, PLW0108
                buffer,
                num_groups=num_groups,
                group_size=size,
                replace=replace,
                max_rounds=3,
            )
            for complete in [*sample.groups, *sample.dropped]:
                assert len({f.episode_id for f in complete}) == size
                assert len({f.prompt_index for f in complete}) == 1
                seen[complete[0].prompt_index] += 1
            ledger.record_trained(sum(map(len, sample.fragments)))
            for dropped in sample.dropped:
                ledger.record_dropped("no_variance", sum(map(len, dropped)))
            assert ledger.check(queue_tokens=queue.num_tokens + buffer.num_tokens).in_flight == 0
            group.revive_all()
            if resume and update == 4:
                waiting = buffer.fragments()
                group.runners = {k: SimulatedRunner(k, 50 + k, 0, None) for k in group.runners}
                pump, ledger, queue, _ = make_pump(
                    group, batch=1, max_staleness=1, ledger=Ledger.from_state(ledger.state())
                )
                queue.push(waiting)
                buffer = GroupBuffer(size)
    assert set(seen.values()) == {1}
    open_prompts = {f.prompt_index for f in buffer.fragments()} | {k // size for k in ledger._returned}
    assert set(range(max(seen) + 1)) <= set(seen) | open_prompts
