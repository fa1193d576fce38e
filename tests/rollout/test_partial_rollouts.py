"""Whole responses that end in any order and run on through updates, with simulated env-runners, some of which are lost."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from helpers import make_fragment
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_driver import (
    SLOTS,
    PersistentWeights,
    SimulatedWeights,
    make_controller,
    make_group,
    make_runner,
    without_pauses,
)

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment, fragments_from_table
from tppo_rl.rollout.batch_sources import BatchSource, batch_source
from tppo_rl.rollout.group_gate import GroupGate
from tppo_rl.rollout.groups import GroupBuffer
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.simulated_engine import draw_lognormal_length
from tppo_rl.rollout.simulated_group import SimulatedGroup, SimulatedRunner

CAP = 48
WHOLE = {"window_length": None, "max_response_length": CAP}
PARTIAL = WHOLE | {"mode": "sync", "partial_rollouts": True}


@pytest.fixture(autouse=True, scope="module")
def _without_pauses() -> Iterator[None]:
    with without_pauses():
        yield


class Run:
    """A run without learners: batches, the ledger, new versions."""

    def __init__(self, runners: int, seed: int, *, batch: int, local: bool = False, **options: Any) -> None:
        options |= {"train_batch_size_per_learner": batch, "num_env_runners": runners}
        self.options = Options.of({"num_envs_per_env_runner": SLOTS, **options})
        self.bound = self.options.staleness_bound
        self._given = options
        self._start(LocalGroup(make_runner(None, seed, 0, 0)) if local else make_group(runners, seed, window=None))

    def _start(self, group: SimulatedGroup) -> None:
        self.group = group
        asynchronous = self.options.pipeline.mode == "async"
        weights = PersistentWeights(group) if asynchronous else SimulatedWeights(group)
        self.controller, self.weights = make_controller(group, weights=weights, **self._given)
        self.source: BatchSource = batch_source(self.options, self.controller, self.weights)

    def update(self) -> list[Fragment]:
        fragments = self.source.next()
        version = self.weights.version
        oldest = max(version - fragment.oldest_version for fragment in fragments)
        assert oldest <= self.bound
        counts = self.controller.record_trained(sum(map(len, fragments)), oldest)
        assert counts.unaccounted == 0
        self.weights.version += 1
        if isinstance(self.group, LocalGroup):
            self.group.local_env_runner.take_weights(self.weights.version)
        return fragments

    def dropped_since(self) -> set[int]:
        """Prompts of the groups that were dropped since the last update."""
        sample = self.controller._backlog.take_group_sample()
        return set() if sample is None else {group[0].prompt_index for group in sample.dropped}

    def resume(self) -> None:
        """Goes on from a checkpoint, with new env-runners."""
        saved, version = self.controller.state(), self.weights.version
        self._start(make_group(len(self.group.runners), version, window=None))
        self.weights.version = version
        for runner in self.group.runners.values():
            assert runner is not None
            runner.take_weights(version)
        self.controller.restart(
            Ledger.from_state(saved["ledger"], self.group.healthy_env_runner_ids()),
            fragments_from_table(saved["queue"]),
            fragments_from_table(saved["grouped"]),
            saved["left_out"],
        )


class LocalGroup(SimulatedGroup):
    """One env-runner in the driver's process."""

    def __init__(self, runner: SimulatedRunner) -> None:
        super().__init__(0, lambda *_: runner, seed=0)
        self.local_env_runner: Any = runner
        self.runners = {0: runner}

    def healthy_env_runner_ids(self) -> list[int]:
        return []

    def num_remote_env_runners(self) -> int:
        return 0


def by_prompt(fragments: list[Fragment]) -> dict[int, list[Fragment]]:
    groups = defaultdict(list)
    for fragment in fragments:
        assert fragment.finished
        assert fragment.window_index == 0
        groups[fragment.prompt_index].append(fragment)
    return groups


@given(
    runners=st.integers(1, 3),
    size=st.integers(1, 4),
    batch=st.integers(10, 200),
    max_staleness=st.integers(1, 4),
    depth=st.sampled_from([None, 1.0, 2.5]),
    mode=st.sampled_from(["async", "sync"]),
    replace=st.booleans(),
    losses=st.integers(0, 3),
    resume=st.booleans(),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=35, deadline=None)
def test_every_group_is_trained_once_and_whole_whatever_is_lost(
    runners: int, size: int, batch: int, max_staleness: int, depth: float | None, mode: str, replace: bool, losses: int,
    resume: bool, seed: int,
) -> None:  # fmt: skip
    run = Run(
        runners,
        seed,
        **(PARTIAL if mode == "sync" else WHOLE | {"max_queued_batches": depth}),
        batch=batch,
        max_staleness=max_staleness,
        group_size=size,
        dynamic_sampling=replace and size > 1,
    )
    seen, dropped = set[int](), set[int]()
    for update in range(20):
        groups = by_prompt(run.update())
        for prompt, group in groups.items():
            assert sorted(one.episode_id for one in group) == list(range(prompt * size, (prompt + 1) * size))
        assert not seen & groups.keys()
        seen |= groups.keys()
        sample = run.controller.drain_statistics().group_sample
        dropped |= set() if sample is None else {group[0].prompt_index for group in sample.dropped}
        if resume and update == 9:
            dropped |= run.dropped_since()
            run.resume()
        elif update % 5 == 1 and losses:
            losses -= 1
            run.group.lose(update % runners + 1)
            run.group.revive_all()
    dropped |= run.dropped_since()
    # A prompt that none knows of any more would have been skipped.
    ledger = run.controller.ledger
    known = {episode // size for account in ledger._runners.values() for episode in account.leased}
    known |= {episode // size for episodes in (ledger._returned, *ledger._reserved.values()) for episode in episodes}
    waiting = {one.prompt_index for one in run.controller.queue.fragments() + run.controller.groups.fragments()}
    assert not seen & dropped
    assert set(range(max(seen))) <= seen | known | waiting | dropped
    assert ledger.counts().dropped.keys() <= {"no_variance"}


@given(runners=st.integers(1, 3), size=st.integers(1, 4), seed=st.integers(0, 10**6), resume=st.booleans())
@settings(max_examples=25, deadline=None)
def test_what_is_too_old_is_dropped_and_counted_where_that_is_asked_for(
    runners: int, size: int, seed: int, resume: bool
) -> None:
    run = Run(
        runners,
        seed,
        **WHOLE,
        batch=20,
        max_staleness=1,
        group_size=size,
        old_responses="drop",
    )
    ended = Counter[int]()
    for update in range(30):
        ended.update(fragment.episode_id for fragment in run.update())
        if resume and update == 15:
            run.resume()
    assert set(ended.values()) == {1}
    assert run.controller.ledger.counts().dropped.keys() <= {"too_old"}


def test_dropping_by_age_leaves_out_long_responses_and_waiting_does_not() -> None:
    means = {}
    for what in ("wait", "drop"):
        run = Run(2, 5, **WHOLE, batch=40, max_staleness=2, old_responses=what)
        lengths = [len(fragment) for _ in range(200) for fragment in run.update()]
        means[what] = np.mean(lengths)
        dropped = run.controller.ledger.counts().dropped
        assert dropped.keys() == ({"too_old"} if what == "drop" else set())
    assert means["drop"] < 0.9 * means["wait"]


@pytest.mark.parametrize(
    "options", [WHOLE | {"max_staleness": 3}, PARTIAL | {"max_staleness": 3}, PARTIAL | {"max_staleness": 0}]
)
@pytest.mark.parametrize("size", [1, 4])
def test_lengths_that_are_trained_are_those_of_the_policy(options: dict[str, Any], size: int) -> None:
    """Kolmogorov-Smirnov over 4,000 responses a side; responses that are cut off at the cap count as long as it."""
    run = Run(2, 11, **options, batch=150, group_size=size)
    trained: list[int] = []
    while len(trained) < 4000:
        trained += [len(fragment) for fragment in run.update()]
    draw, generator = draw_lognormal_length(12.0, 1.0), np.random.default_rng(7)
    afresh = np.sort([min(draw(generator), CAP) for _ in range(4000)])
    points = np.arange(CAP + 1)
    distance = np.abs(
        np.searchsorted(np.sort(trained), points, side="right") / len(trained)
        - np.searchsorted(afresh, points, side="right") / len(afresh)
    ).max()
    assert distance <= 0.05


@pytest.mark.parametrize("local", [True, False])
@pytest.mark.parametrize("size", [1, 2])
def test_without_staleness_partial_rollouts_are_whole_steps(local: bool, size: int) -> None:
    """With requests as long as the cap, each step of both is one request to each env-runner."""
    runners = 0 if local else 2
    common = WHOLE | {"mode": "sync", "group_size": size, "batch": 1}
    whole = Run(runners, 3, local=local, **common)
    partial_ = Run(
        runners, 3, local=local, **common, partial_rollouts=True, max_staleness=0, engine_steps_per_sample=CAP
    )
    for _ in range(12):
        first, second = whole.update(), partial_.update()
        assert [one.episode_id for one in first] == [one.episode_id for one in second]
        assert all(np.array_equal(a.tokens, b.tokens) for a, b in zip(first, second, strict=True))
        assert partial_.controller.ledger.counts().in_flight == 0


def test_responses_run_on_through_updates_with_the_version_of_each_token() -> None:
    run = Run(1, 2, **PARTIAL, batch=30, max_staleness=4)
    mixed = [fragment for _ in range(30) for fragment in run.update() if len(set(fragment.versions.tolist())) > 1]
    assert mixed
    assert all(np.all(np.diff(fragment.versions) >= 0) for fragment in mixed)


def test_a_policy_that_is_always_right_does_not_wait_for_ever() -> None:
    gate = GroupGate(GroupBuffer(2), replace=True, by_correctness=False, batch_tokens=6, max_rounds=3)

    def pair(prompt: int, rewards: tuple[float, float]) -> list[Fragment]:
        return [make_fragment(prompt_index=prompt, rewards=[0.0, 0.0, reward], terminated=True) for reward in rewards]

    results = [gate.admit(pair(prompt, (1.0, 1.0))) for prompt in range(5)]
    assert [len(dropped) for _, dropped in results] == [1, 1, 1, 0, 0], "three batches of six tokens are dropped"
    sample = gate.take_sample()
    assert (sample.num_complete, sample.num_without_variance, sample.rounds, len(sample.dropped)) == (5, 5, 4, 3)
    assert gate.admit(pair(9, (1.0, 1.0)))[1], "after the update it begins anew"
    assert gate.admit(pair(10, (1.0, 0.0)))[0]


def test_groups_leave_the_queue_together_after_a_resume() -> None:
    run = Run(2, 8, **WHOLE, batch=60, group_size=3, max_staleness=3, max_queued_batches=3)
    for _ in range(3):
        run.update()
    while run.controller.queue.num_tokens < 120:
        run.controller.poll()
    before = run.controller.queue.fragments()
    run.resume()
    assert [one.episode_id for one in run.controller.queue.fragments()] == [one.episode_id for one in before]
    assert all(len(group) == 3 for group in by_prompt(run.update()).values())


def test_the_depth_of_the_queue_is_an_option_of_its_own() -> None:
    tokens = {}
    for depth in (1.0, 4.0):
        run = Run(2, 4, **WHOLE, batch=100, max_staleness=4, max_queued_batches=depth)
        for _ in range(3000):
            run.controller.poll(timeout_s=1e-6)
        tokens[depth] = run.controller.queue.num_tokens
    assert 100 <= tokens[1.0] < 200
    assert tokens[4.0] >= 400
