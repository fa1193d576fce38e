"""The driver's side of sampling against many simulated env-runners of random speed, some of which are lost."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import CountingEnv, IntegerChat
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_driver import (
    SLOTS,
    STEPS,
    WINDOW,
    LateWeights,
    PersistentWeights,
    SimulatedWeights,
    make_controller,
    make_group,
    make_runner,
    without_pauses,
)

from tppo_rl.config.options import Options
from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.fragments import Fragment, fragments_from_table, table_from_fragments
from tppo_rl.core.prompts import prompt_seed
from tppo_rl.core.waiting import Stage, StageCut, watched_by
from tppo_rl.rollout.batch_sources import SyncWindows, WholeGroups
from tppo_rl.rollout.controller import SAMPLE_TAG, RolloutController
from tppo_rl.rollout.engine import Sampling
from tppo_rl.rollout.failure_watch import RewardsFailed
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sample_result import SampleResult
from tppo_rl.rollout.sampler import EpisodeLimits, Sampler
from tppo_rl.rollout.simulated_engine import SimulatedEngine, draw_lognormal_length
from tppo_rl.rollout.simulated_group import SimulatedGroup, SimulatedRunner

TICK = 1e-6
"""Shortest time in which simulated env-runners do something."""


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
    group = make_group(runners, seed)
    controller, weights = make_controller(group, batch=batch, max_staleness=max_staleness)
    for update in range(25):
        version = weights.version
        fragments = controller.next_batch()
        tokens = sum(map(len, fragments))
        assert tokens >= batch
        assert all(version - fragment.oldest_version <= max_staleness for fragment in fragments)
        for _ in range(group.random.randint(0, 3)):
            controller.poll(TICK)
        assert controller.record_trained(tokens, 0).unaccounted == 0
        weights.version = version + 1
        if update % 8 == 7 and losses:
            losses -= 1
            group.lose(group.random.randint(1, runners))
            group.revive_all()


@given(runners=st.integers(1, 3), restarts=st.lists(st.integers(0, 60), max_size=6), seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_restart_gives_out_no_prompt_twice(runners: int, restarts: list[int], seed: int) -> None:
    """Whenever env-runners restart, and in whatever order their answers come: an episode is finished once, and none is skipped."""
    group = make_group(runners, seed)
    controller, weights = make_controller(group, batch=60, max_staleness=2, weights=LateWeights(group))
    finished = Counter[int]()
    for poll in range(200):
        if poll in restarts:
            group.restart(group.random.randint(1, runners))
        controller.poll(TICK)
        if poll % 10 == 9:
            fragments = controller.queue.pop(60, oldest_allowed_to_stay=0)
            finished.update(fragment.episode_id for fragment in fragments if fragment.finished)
            assert controller.record_trained(sum(map(len, fragments)), 0).unaccounted == 0
            weights.version += 1
            for index in group.healthy_env_runner_ids():
                weights.revive(index)
    finished.update(fragment.episode_id for fragment in controller.queue.fragments() if fragment.finished)
    assert set(finished.values()) == {1}
    ledger = controller.ledger
    out = {episode for runner in ledger._runners.values() for episode in runner.leased} | set(ledger._returned)
    assert set(range(max(finished))) <= set(finished) | out | ledger._set_aside
    assert not out & set(finished)


@given(
    runners=st.integers(1, 3),
    turns=st.integers(1, 3),
    events=st.dictionaries(st.integers(0, 90), st.sampled_from(["lose", "restart", "resume"]), max_size=8),
    max_staleness=st.integers(1, 3),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=25, deadline=None)
def test_episodes_go_on_from_the_last_token_that_was_told(
    runners: int, turns: int, events: dict[int, str], max_staleness: int, seed: int
) -> None:
    """Whatever is lost, and whenever the driver is started again: no window comes twice, none is missing, no token is dropped."""

    def make(of: int) -> tuple[SimulatedGroup, RolloutController, SimulatedWeights]:
        group = SimulatedGroup(runners, partial(make_runner, WINDOW, of, turns=turns), seed=of)
        weights = PersistentWeights(group)
        return group, *make_controller(group, batch=40, max_staleness=max_staleness, weights=weights)

    group, controller, weights = make(seed)
    fragments: list[Fragment] = []
    for poll in range(100):
        event = events.get(poll)
        if event == "resume":
            state, version = controller.state(), weights.version
            group, controller, weights = make(seed + poll + 1)
            weights.version = version
            weights.wait_until_delivered()
            ledger = Ledger.from_state(state["ledger"], group.healthy_env_runner_ids())
            controller.restart(ledger, fragments_from_table(state["queue"]))
            assert controller.ledger.check(queue_tokens=controller.queue.num_tokens).dropped == {}
        elif event is not None:
            getattr(group, event)(group.random.choice(group.healthy_env_runner_ids() or [1]))
        # The driver may meet a loss late, and an env-runner may be away for a while.
        if group.random.random() < 0.5 or not group.healthy_env_runner_ids():
            group.revive_all()
        if group.random.random() < 0.8:
            controller.poll(TICK)
        if poll % 10 == 9:
            batch = controller.next_batch()
            assert all(weights.version - fragment.oldest_version <= max_staleness for fragment in batch)
            fragments += batch
            assert controller.record_trained(sum(map(len, batch)), 0).unaccounted == 0
            weights.version += 1
    fragments += controller.queue.fragments()
    assert controller.ledger.counts().dropped == {}
    episodes: dict[int, list[Fragment]] = {}
    for fragment in sorted(fragments, key=lambda one: (one.episode_id, one.window_index)):
        episodes.setdefault(fragment.episode_id, []).append(fragment)
    for windows in episodes.values():
        assert_glued(windows, ended=windows[-1].finished)
    open_or_waiting = {episode.episode_id for episode in (*controller.ledger.held, *controller._told.all())}
    assert {number for number, windows in episodes.items() if not windows[-1].finished} <= open_or_waiting


def test_windows_of_an_env_runner_whose_loss_was_not_met_yet_hold_updates_up() -> None:
    """They go on elsewhere: an update that went by would make them too old."""
    group = make_group(2, seed=3)
    controller, weights = make_controller(group, batch=40, max_staleness=1, weights=PersistentWeights(group))
    while controller.queue.num_tokens < 40 or not controller._told.of(1):
        controller.poll(TICK)
    weights.version += 1
    assert not controller._may_update(), "open windows are of the version before"
    group.lose(1)
    group.lose(2)
    assert not controller._may_update()
    group.revive_all()
    batch = controller.next_batch()
    assert all(weights.version - fragment.oldest_version <= 1 for fragment in batch)
    assert controller.record_trained(sum(map(len, batch)), 1).unaccounted == 0
    weights.version += 1
    batch = controller.next_batch()
    assert all(weights.version - fragment.oldest_version <= 1 for fragment in batch)


def assert_glued(windows: list[Fragment], *, ended: bool) -> None:
    """Windows of an episode follow upon one another token by token; the simulated tokens say whose and where they are."""
    assert [window.window_index for window in windows] == list(range(len(windows)))
    for before, after in itertools.pairwise(windows):
        np.testing.assert_array_equal(after.context, np.concatenate([before.context, before.tokens]))
        np.testing.assert_array_equal(after.context_sampled, np.concatenate([before.context_sampled, before.sampled]))
        np.testing.assert_array_equal(after.context_rewards, np.concatenate([before.context_rewards, before.rewards]))
        assert not before.finished
    last = windows[-1]
    tokens = np.concatenate([last.context, last.tokens])
    assert tokens[1] == prompt_seed(0, last.prompt_index) % 50 + 1
    sampled = np.concatenate([last.context_sampled, last.sampled]).astype(bool)
    places = np.flatnonzero(sampled & (tokens != 0))
    np.testing.assert_array_equal(tokens[places], 1 + (places + 1) % 63)
    if ended:
        rewards = np.concatenate([last.context_rewards, last.rewards])
        assert np.count_nonzero(rewards[~sampled]) == 0


def test_an_env_runner_that_was_given_up_begins_anew_when_it_comes_back() -> None:
    """What it held went out again: were it taken back as it is, its prompts would be trained twice."""
    group = make_group(2, seed=4)
    controller, weights = make_controller(group, batch=60, max_staleness=3)
    finished = Counter[int]()
    gone: Any = None
    for update in range(12):
        fragments = controller.next_batch()
        finished.update(fragment.episode_id for fragment in fragments if fragment.finished)
        assert controller.record_trained(sum(map(len, fragments)), 0).unaccounted == 0
        weights.version += 1
        if update == 3:
            held = set(controller.ledger._runners[1].leased)
            gone = group.disconnect(1)
            controller.poll(TICK)
            assert held
        if update == 5:
            group.reconnect(1, gone)
    finished.update(fragment.episode_id for fragment in controller.queue.fragments() if fragment.finished)
    assert set(finished.values()) == {1}
    assert gone.incarnation == "1-0'", "it was told to abandon what it held"
    assert controller.ledger._runners[1].sampled > 0, "and samples again"


def test_requests_stop_at_the_limit_and_begin_again_after_an_update() -> None:
    group = make_group(2, seed=1)
    controller, weights = make_controller(group, batch=100, max_staleness=2)
    for _ in range(400):
        controller.poll(TICK)
    full = controller.queue.num_tokens
    assert 200 <= full <= 200 + 2 * 2 * SLOTS * STEPS + 2 * SLOTS * WINDOW
    assert controller.num_requests == group.num_in_flight_async_reqs(SAMPLE_TAG) == 0
    controller.next_batch()
    weights.version = 1
    for _ in range(10):
        controller.poll(TICK)
    assert controller.queue.num_tokens > full - 100 - WINDOW


def test_requests_of_one_poll_count_towards_the_limit() -> None:
    group = make_group(6, seed=9)
    controller, _ = make_controller(group, batch=5 * SLOTS * STEPS)
    controller.poll(0.0)
    assert controller.num_requests == group.num_in_flight_async_reqs(SAMPLE_TAG) == 5


def test_a_poll_without_requests_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, _ = make_controller(make_group(1, seed=6), batch=20)
    for _ in range(200):
        controller.poll(TICK)
    assert controller.num_requests == 0, "the queue must be full"
    pauses: list[float] = []
    monkeypatch.setattr(
        "tppo_rl.rollout.controller.time", SimpleNamespace(sleep=pauses.append, monotonic=time.monotonic)
    )
    controller.poll(0.05)
    assert pauses == [0.05]


def test_prompts_of_a_lost_env_runner_are_answered_by_others() -> None:
    group = make_group(2, seed=2)
    controller, _ = make_controller(group, batch=300)
    controller.next_batch()
    ledger = controller.ledger
    lost = set(ledger._runners[1].leased)
    group.lose(1)
    controller.poll(TICK)
    assert lost
    assert lost <= set(ledger._returned) | ledger._runners[2].leased


def test_without_any_env_runner_the_run_gives_up() -> None:
    group = make_group(1, seed=3)
    controller, _ = make_controller(group, batch=50, env_runner_timeout_s=1e-9)
    group.lose(1)
    with pytest.raises(ProcessDied, match="no env-runner was healthy"):
        controller.next_batch()


def test_an_error_of_an_env_runner_is_raised_here() -> None:
    controller, _ = make_controller(make_group(1, seed=4), batch=50)
    failed = SampleResult(table_from_fragments([]), "1-0", 0, error=ValueError("max_prompt_length=2: too short"))
    with pytest.raises(ValueError, match="max_prompt_length=2"):
        controller.ingest(1, failed)


def test_one_window_of_every_slot_is_one_sync_batch() -> None:
    controller, weights = make_controller(make_group(3, seed=5), mode="sync")
    source = SyncWindows(controller, weights)
    for _ in range(3):
        assert sum(map(len, source.next())) == 3 * SLOTS * WINDOW
        assert controller.record_trained(3 * SLOTS * WINDOW, 0).in_flight == 0


class StopsRun:
    """Watches stages and wants the run to stop."""

    stop_asked = True

    def begin(self, stage: Stage) -> None:
        assert stage.cut == "soon", f"{stage.words}: it would be finished against the user's wish"

    def advance(self, stage: Stage, done: int) -> None:
        raise AssertionError

    def end(self, stage: Stage) -> None:
        pass


@pytest.mark.parametrize("window", [WINDOW, None])
def test_ctrl_c_while_weights_are_delivered_begins_no_other_iteration(window: int | None) -> None:
    options = {"mode": "sync", "window_length": window, "group_size": 2}
    controller, weights = make_controller(make_group(1, seed=5, window=window), **options)
    source: Any = SyncWindows(controller, weights)
    if window is None:
        source = WholeGroups(controller, weights, Options.of(options | {"num_envs_per_env_runner": SLOTS}))
    with watched_by(StopsRun()), pytest.raises(StageCut):
        source.next()


def test_ctrl_c_begins_no_other_iteration_where_a_batch_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, _ = make_controller(make_group(1, seed=5), batch=50)
    monkeypatch.setattr(controller, "_may_update", lambda: True)
    monkeypatch.setattr(controller.queue, "pop", lambda *_, **__: pytest.fail("the batch would be trained"))
    with watched_by(StopsRun()), pytest.raises(StageCut):
        controller.next_batch()


@pytest.mark.parametrize("num_episodes", [1, 7, 40])
def test_whole_responses_are_as_many_as_were_asked_for(num_episodes: int) -> None:
    controller, _ = make_controller(make_group(3, seed=6), mode="sync")
    for step in range(3):
        fragments = controller.whole_responses(num_episodes)
        finished = sorted(fragment.episode_id for fragment in fragments if fragment.finished)
        assert finished == list(range(step * num_episodes, (step + 1) * num_episodes))
        assert controller.record_trained(sum(map(len, fragments)), 0).in_flight == 0


@given(runners=st.integers(1, 3), seed=st.integers(0, 10**6), replace=st.booleans(), resume=st.booleans())
@settings(max_examples=25, deadline=None)
def test_groups_are_trained_once_whatever_is_lost(runners: int, seed: int, replace: bool, resume: bool) -> None:
    """Every prompt's group is trained or dropped once, or waits; none is skipped, and the ledger adds up."""
    size = 3
    options = {
        "mode": "sync",
        "window_length": None,
        "group_size": size,
        "dynamic_sampling": replace,
        "dynamic_sampling_max_rounds": 3,
        "num_env_runners": runners,
    }
    group, seen = make_group(runners, seed, window=None), Counter[int]()
    controller, weights = make_controller(group, **options)
    fetch = group.fetch_ready_async_reqs

    def losing(**arguments: Any) -> list[tuple[int, SampleResult]]:
        if group.random.random() < 0.1:
            group.lose(group.random.randint(1, runners))
        return fetch(**arguments)

    group.fetch_ready_async_reqs = losing  # type: ignore[method-assign]
    source = WholeGroups(controller, weights, Options.of(options | {"num_envs_per_env_runner": SLOTS}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "tppo_rl.rollout.controller.time", SimpleNamespace(sleep=lambda _: None, monotonic=time.monotonic)
        )
        for update in range(8):
            fragments = source.next()
            sample = controller.drain_statistics().group_sample
            assert sample is not None
            for complete in [*sample.groups, *sample.dropped]:
                assert len({f.episode_id for f in complete}) == size
                assert len({f.prompt_index for f in complete}) == 1
                seen[complete[0].prompt_index] += 1
            assert controller.record_trained(sum(map(len, fragments)), 0).in_flight == 0
            group.revive_all()
            if resume and update == 4:
                saved = controller.state()
                group.runners = {k: make_runner(None, seed, k, 0) for k in group.runners}
                controller.restart(
                    Ledger.from_state(saved["ledger"]),
                    fragments_from_table(saved["queue"]),
                    fragments_from_table(saved["grouped"]),
                )
    assert set(seen.values()) == {1}
    waiting = {f.prompt_index for f in controller.groups.fragments()} | {
        f.prompt_index for f in controller.queue.fragments()
    }
    open_prompts = waiting | {k // size for k in controller.ledger._returned}
    assert set(range(max(seen) + 1)) <= set(seen) | open_prompts


class SometimesFailing(CountingEnv):
    """Its step raises on some problems."""

    def __init__(self, one_in: int) -> None:
        super().__init__()
        self._one_in = one_in
        self._seed = 0

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        self._seed = seed
        return super().reset(seed=seed)

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if (self._seed + len(text)) % self._one_in == 0:
            raise ValueError(f"problem {self._seed}")
        return super().step(text)


def failing_group(
    count: int,
    one_in: int,
    *,
    cap: int = 48,
    window: int | None = WINDOW,
    length: Any = draw_lognormal_length(12.0, 1.0),  # noqa: B008
    **options: Any,
) -> SimulatedGroup:
    def make(index: int, restarts: int) -> SimulatedRunner:
        engine = SimulatedEngine(length, seed=100 * index + restarts)
        sampler = Sampler(
            engine,
            partial(SometimesFailing, one_in),
            IntegerChat(),  # type: ignore[arg-type]
            num_slots=SLOTS,
            limits=EpisodeLimits(8, cap, window),
            sampling=Sampling(),
            rewards=Rewards.of(Options.of(max_response_length=cap, **options)),
            env_runner=index,
        )
        return SimulatedRunner(f"{index}-{restarts}", engine, sampler, version=None if restarts else 0)

    return SimulatedGroup(count, make, seed=3)


@pytest.mark.parametrize(
    ("options", "reasons"),
    [
        ({}, {"reward_failed"}),
        ({"on_reward_failure": "retry", "truncated_responses": "mask"}, {"reward_failed", "truncated"}),
        ({"on_reward_failure": "wrong"}, set()),
    ],
)
def test_a_run_goes_on_where_an_environment_fails_now_and_then(options: dict[str, Any], reasons: set[str]) -> None:
    controller, weights = make_controller(failing_group(2, 5, cap=20, **options), batch=60, max_staleness=2)
    ended = Counter[int]()
    failures = 0
    for _ in range(25):
        fragments = controller.next_batch()
        ended.update(fragment.episode_id for fragment in fragments if fragment.finished)
        assert controller.record_trained(sum(map(len, fragments)), 0).unaccounted == 0
        weights.version += 1
        statistics = controller.drain_statistics()
        failures += statistics.scores.failed_responses
        ended.update(list(statistics.scores.left_out))
    ended.update(fragment.episode_id for fragment in controller.queue.fragments() if fragment.finished)
    assert failures > 5
    counts = controller.ledger.counts()
    assert set(counts.dropped) == reasons
    assert set(ended.values()) == {1}
    leased = {episode for runner in controller.ledger._runners.values() for episode in runner.leased}
    assert not leased & set(ended), "a dropped episode has ended: its prompt is not out any more"


def test_groups_are_smaller_by_what_could_not_be_scored_and_none_waits() -> None:
    group = failing_group(2, 4, window=None)
    controller, weights = make_controller(group, window_length=None, mode="sync", group_size=4, num_env_runners=2)
    source = WholeGroups(
        controller, weights, Options.of(group_size=4, num_envs_per_env_runner=SLOTS, num_env_runners=2)
    )
    sizes = Counter[int]()
    for _ in range(12):
        fragments = source.next()
        sizes.update(Counter(fragment.prompt_index for fragment in fragments).values())
        controller.record_trained(sum(map(len, fragments)), 0)
        weights.version += 1
        assert controller.groups.num_tokens == 0, "no response waits for one that will not come"
        assert controller.groups.left_out == {}
    assert sizes.keys() - {4}, "some groups are smaller"
    assert max(sizes) == 4
    assert controller.ledger.counts().dropped["reward_failed"] > 0


def test_a_run_whose_rewards_all_fail_ends_with_one_message() -> None:
    controller, _ = make_controller(failing_group(1, 1), batch=10_000)
    with pytest.raises(
        RewardsFailed, match=r"max_failed_fraction=0.5: .*environment \(exception\): ValueError: problem"
    ):
        controller.next_batch()


def test_a_run_whose_responses_are_all_masked_ends_with_one_message() -> None:
    group = failing_group(1, 10**9, cap=4, window=None, length=lambda _: 9, truncated_responses="mask")
    controller, weights = make_controller(group, window_length=None, mode="sync", group_size=2, max_response_length=4)
    source = WholeGroups(controller, weights, Options.of(group_size=2, num_envs_per_env_runner=SLOTS))
    with pytest.raises(RewardsFailed, match="truncated_responses='mask'"):
        source.next()


def test_open_groups_are_in_the_checkpoint() -> None:
    controller, _ = make_controller(make_group(1, seed=4), group_size=3)
    controller.groups.leave_out(5)
    controller.groups.leave_out(5)
    state = controller.state()
    assert state["left_out"] == {5: 2}
    other, _ = make_controller(make_group(1, seed=4), group_size=3)
    other.restart(Ledger.from_state(state["ledger"]), left_out=state["left_out"])
    assert other.groups.left_out == {5: 2}


@pytest.mark.parametrize("mode", ["async", "sync"])
def test_an_env_runner_that_hangs_is_started_anew_and_its_prompts_go_out_again(mode: str) -> None:
    group = make_group(2, seed=3)
    controller, weights = make_controller(
        group, mode=mode, max_staleness=0 if mode == "sync" else 1, heartbeat_timeout_s=0.4
    )
    with without_pauses():
        for number in range(12):
            if number == 4:
                group.hung = {1}
            batch = controller.one_window() if mode == "sync" else controller.next_batch()
            counts = controller.record_trained(sum(len(fragment.tokens) for fragment in batch), 1)
            group.revive_all()
            weights.version += 1
            if mode == "sync":
                weights.wait_until_delivered()
    assert group.hung == set()
    assert group._restarts[1] >= 1
    assert not counts.dropped


def test_an_env_runner_that_hangs_in_its_start_is_killed_once_more() -> None:
    group = make_group(2, seed=3)
    controller, _ = make_controller(group, env_runner_timeout_s=0.2)
    controller.next_batch()
    replaced: list[int] = []
    group.replace = replaced.append  # type: ignore[method-assign]
    group.lose(1)
    began = time.monotonic()
    while not replaced:
        controller.poll(TICK)
    assert replaced == [1]
    assert time.monotonic() - began > 0.2
    controller.poll(TICK)
    assert replaced == [1]
