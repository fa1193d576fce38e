"""Prompts that kill their env-runners are found and set aside, and no other prompt is."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
from helpers import CountingEnv
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_driver import SLOTS, STEPS, WINDOW, SimulatedWeights, make_controller, make_runner, without_pauses

from tppo_rl.config.options import Options
from tppo_rl.core.prompts import prompt_seed
from tppo_rl.rollout.batch_sources import WholeGroups
from tppo_rl.rollout.controller import RolloutController
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.simulated_group import SimulatedGroup
from tppo_rl.rollout.suspects import EnvRunnerKeepsDying, Suspects


class Killed(BaseException):
    """The process of an env-runner is gone."""


class KillingEnv(CountingEnv):
    """Takes its process with it on some prompts: when they are made, or when a turn is answered."""

    def __init__(self, killers: set[int], at: str) -> None:
        super().__init__(turns=2)
        self._killers = killers
        self._at = at
        self._seed = -1

    def reset(self, *, seed: int) -> Any:
        self._seed = seed
        self._kill("reset")
        return super().reset(seed=seed)

    def step(self, text: str) -> Any:
        self._kill("step")
        return super().step(text)

    def _kill(self, at: str) -> None:
        if at == self._at and self._seed in self._killers:
            raise Killed(self._seed)


class MortalGroup(SimulatedGroup):
    """Env-runners that die of some prompts, and come back."""

    def __init__(self, count: int, killers: set[int], *, at: str, window: int | None, seed: int = 0) -> None:
        self.deaths = Counter[int]()
        make_env = partial(KillingEnv, killers, at)
        super().__init__(count, partial(make_runner, window, seed, make_env=make_env), seed=seed)

    def execute(self) -> None:
        self.revive_all()
        for index in self.healthy_env_runner_ids():
            calls = self._calls[index]
            while calls and self.random.random() < self._ready:
                call = calls.popleft()
                try:
                    answer = getattr(self.runners[index], call.name)(**call.kwargs)
                except Killed as death:
                    self.deaths[death.args[0]] += 1
                    self.lose(index)
                    break
                self._answers.setdefault(call.tag, []).append((index, answer))
                if call.name == "sample":
                    break


def finished_prompts(controller: RolloutController, weights: SimulatedWeights, updates: int) -> Counter[int]:
    """Trains some batches; returns the number of responses of each prompt that ended in them."""
    finished = Counter[int]()
    for _ in range(updates):
        fragments = controller.next_batch()
        finished.update(one.prompt_index for one in fragments if one.finished)
        assert controller.record_trained(sum(map(len, fragments)), 0).unaccounted == 0
        weights.version += 1
        weights.wait_until_delivered()
    return finished


@given(
    runners=st.integers(1, 2),
    killers=st.tuples(st.integers(0, 25), st.integers(150, 175), st.integers(300, 325)).map(set),
    at=st.sampled_from(["reset", "step"]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=6, deadline=None)
def test_what_kills_is_set_aside_and_all_others_are_answered(
    runners: int, killers: set[int], at: str, seed: int
) -> None:
    with without_pauses():
        group = MortalGroup(
            runners, {prompt_seed(0, index, None) for index in killers}, at=at, window=WINDOW, seed=seed
        )
        controller, weights = make_controller(group, batch=200, max_staleness=2)
        finished = finished_prompts(controller, weights, 55)
    ledger = controller.ledger
    # The search for the last ones may be under way.
    assert {min(killers)} <= ledger._set_aside <= killers
    assert not killers & finished.keys()
    # Two, one for each halving of what an env-runner has, and two alone; a search may begin anew where another env-runner goes on with it.
    assert max(group.deaths.values()) <= 4 * (4 + math.ceil(math.log2(SLOTS * (STEPS + 1))))
    waiting = {*ledger._returned, *(number for one in ledger._runners.values() for number in one.leased)}
    waiting |= {one.episode_id for one in controller.queue.fragments()}
    assert set(range(max(finished))) <= finished.keys() | waiting | ledger._set_aside


def test_the_others_of_a_group_do_not_wait_for_what_was_set_aside() -> None:
    options = {"mode": "sync", "window_length": None, "group_size": 3, "num_env_runners": 1}
    with without_pauses():
        group = MortalGroup(1, {prompt_seed(0, 2, None)}, at="step", window=None)
        controller, weights = make_controller(group, **options)
        source = WholeGroups(controller, weights, Options.of(options | {"num_envs_per_env_runner": SLOTS}))
        trained: set[int] = set()
        for _ in range(12):
            fragments = source.next()
            trained |= {one.prompt_index for one in fragments}
            assert controller.record_trained(sum(map(len, fragments)), 0).unaccounted == 0
    assert 2 not in trained
    assert set(range(max(trained))) - {2} <= trained
    assert controller.drain_statistics().set_aside_episodes == 3
    restored = Ledger.from_state(controller.state()["ledger"])
    assert restored.num_set_aside == 3
    assert restored.counts().dropped == controller.ledger.counts().dropped


def test_an_env_runner_that_always_dies_ends_the_run() -> None:
    with without_pauses():
        group = MortalGroup(1, {prompt_seed(0, index, None) for index in range(10_000)}, at="reset", window=WINDOW)
        controller, _ = make_controller(group, batch=40)
        with pytest.raises(EnvRunnerKeepsDying, match=r"env-runner 1 was lost 10 times without a token"):
            controller.next_batch()


def test_halves_are_tried_until_one_prompt_dies_alone() -> None:
    suspects = Suspects()
    for _ in range(2):
        assert suspects.lost(1, {4, 5, 6, 7}) is None
    assert suspects.tries(1)
    suspects.try_half([4, 5, 6, 7])
    assert suspects.trial == {4, 5}
    suspects.ended([4, 5])
    suspects.try_half([6, 7])
    assert suspects.lost(1, {6}) is None, "once alone may be chance"
    suspects.try_half([6])
    assert suspects.lost(1, {6}) == 6
    assert not suspects.exist


def test_a_death_in_a_trial_clears_the_other_half() -> None:
    suspects = Suspects()
    for _ in range(2):
        suspects.lost(1, {4, 5, 6, 7})
    assert suspects.tries(1)
    suspects.try_half([4, 5, 6, 7])
    assert suspects.lost(1, {4, 5}) is None
    assert [suspects.is_suspect(prompt) for prompt in (4, 5, 6, 7)] == [True, True, False, False]


def test_one_env_runner_tries_suspects_with_nothing_else() -> None:
    ledger = Ledger(seed=0)
    for _ in range(2):
        ledger.lease(1, 3)
        ledger.lose_env_runner(1)
    assert [ticket.episode_id for ticket in ledger.lease(1, 3)] == [0, 1]
    assert ledger.lease(1, 3) == [], "the others wait until these have ended"
    assert [ticket.episode_id for ticket in ledger.lease(2, 3)] == [3, 4, 5]
    ledger.free_reserved([2])
    assert ledger.lease(2, 3) == [], "it tries suspects now, and has others"


def test_a_suspect_that_cannot_be_made_holds_up_nothing() -> None:
    ledger = Ledger(seed=0)
    for _ in range(2):
        ledger.lease(1, 1)
        ledger.lose_env_runner(1)
    (ticket,) = ledger.lease(1, 3)
    ledger.drop_prompts(1, [ticket.episode_id])
    assert len(ledger.lease(1, 3)) == 3


def test_a_suspected_group_is_tried_as_a_whole() -> None:
    ledger = Ledger(seed=0, group_size=4)
    for _ in range(2):
        ledger.lease(1, 2)
        ledger.lose_env_runner(1)
    assert [ticket.episode_id for ticket in ledger.lease(1, 9)] == [0, 1, 2, 3]
    assert [ticket.episode_id for ticket in ledger.lease(2, 2)] == [4, 5]
    assert ledger.lose_env_runner(1) == []
    ledger.lease(1, 9)
    assert ledger.lose_env_runner(1) == [0, 0, 0, 0]
    assert [ticket.episode_id for ticket in ledger.lease(1, 2)] == [6, 7]
