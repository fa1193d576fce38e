"""Values at window ends, kept until the episode has ended."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from helpers import make_fragment

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.boundaries import BoundaryTracker
from tppo_rl.learner.update import FRAGMENT_REPORT_SCHEMA


def report(*values: tuple[Fragment, float, float, float]) -> pa.Table:
    """The report of fragments with V(s_(l-1)), V(s_l) and the window's mean."""
    rows = [
        {
            "episode_id": fragment.episode_id,
            "window_index": fragment.window_index,
            "trained_tokens": len(fragment),
            "held_value": held,
            "boundary_value": bootstrap,
            "mean_value": mean,
        }
        for fragment, held, bootstrap, mean in values
    ]
    return FRAGMENT_REPORT_SCHEMA.empty_table().from_pylist(rows, schema=FRAGMENT_REPORT_SCHEMA)


# Two windows of two tokens after a prompt of one; the environment spoke at position 3.
FIRST = make_fragment(episode_id=4, context=[9], tokens=[1, 2])
SECOND = make_fragment(episode_id=4, context=[9, 1, 2], prompt_length=1, tokens=[7, 3], sampled=[0, 1], window_index=1)


def end(**changes: Any) -> Fragment:
    values: dict[str, Any] = {
        "episode_id": 4,
        "window_index": 2,
        "context": [9, 1, 2, 7, 3],
        "prompt_length": 1,
        "context_sampled": np.array([0, 1, 1, 0, 1], np.uint8),
        "context_rewards": np.array([0, 0, 0, 0, 0.5], np.float32),
        "tokens": [4, 5],
        "rewards": [0.0, 1.0],
        "terminated": True,
    }
    return make_fragment(**(values | changes))


def test_boundaries_are_closed_with_the_return_that_followed() -> None:
    tracker = BoundaryTracker(Options.of(gamma=0.5))
    assert tracker.after_update([FIRST], report((FIRST, 0.25, 0.5, 0.1)), 0) == []
    assert tracker.after_update([SECOND], report((SECOND, 0.75, 1.0, 0.2)), 1) == []
    last = end()
    closed = tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), 2)
    # After the first window: reward 0.5 at once, then 1 two sampled tokens later.
    assert [(boundary.window_index, boundary.return_after) for boundary in closed] == [(0, 0.5 + 0.25), (1, 0.5)]
    assert [boundary.position for boundary in closed] == [2, 4]
    assert [boundary.values.held for boundary in closed] == [0.25, 0.75]
    assert tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), 3) == [], "they are closed once"


def test_what_was_left_out_of_advantages_waits_with_its_window() -> None:
    tracker = BoundaryTracker(Options.of(hindsight=True, unfinished_advantage_scale=0.0))
    row = report((FIRST, 0.25, 0.5, 0.1)).to_pylist()[0] | {"left_out_advantages": [0.5, -0.25]}
    tracker.after_update([FIRST], pa.Table.from_pylist([row], schema=FRAGMENT_REPORT_SCHEMA), 0)
    tracker.after_update([SECOND], report((SECOND, 0.75, 1.0, 0.2)), 1)
    last = end()
    tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), 2)
    assert [fragment.left_out_advantages.tolist() for fragment in tracker.due()] == [[0.5, -0.25], []]


def test_windows_of_one_update_are_closed_by_its_last() -> None:
    tracker = BoundaryTracker(Options.of(hindsight=True))
    last = end(
        context=[9, 1, 2],
        context_sampled=np.array([0, 1, 1], np.uint8),
        context_rewards=np.zeros(3, np.float32),
        window_index=1,
    )
    closed = tracker.after_update([last, FIRST], report((FIRST, 0.25, 0.5, 0.1), (last, 0.0, 0.0, 0.0)), 0)
    assert [boundary.return_after for boundary in closed] == [1.0]
    assert [fragment.hindsight_residual for fragment in tracker.due()] == [0.75]
    assert tracker.due() == []


def test_a_lost_attempt_closes_nothing() -> None:
    """After the loss of an env-runner the episode is written anew; what was noted of the first attempt is not its."""
    tracker = BoundaryTracker(Options.of(hindsight=True))
    tracker.after_update([FIRST], report((FIRST, 0.25, 0.5, 0.1)), 0)
    other = end(
        context=[9, 1, 3], context_sampled=np.array([0, 1, 1], np.uint8), context_rewards=np.zeros(3, np.float32)
    )
    assert tracker.after_update([other], report((other, 0.0, 0.0, 0.0)), 1) == []
    assert tracker.due() == []


def test_twice_in_one_update_is_nobodys() -> None:
    tracker = BoundaryTracker(Options.of(hindsight=True))
    again = make_fragment(episode_id=4, context=[9], tokens=[5, 6])
    values = report((FIRST, 0.25, 0.5, 0.1), (again, 0.3, 0.4, 0.2))
    assert tracker.after_update([FIRST, again], values, 0) == []
    last = end()
    assert tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), 1) == []


@pytest.mark.parametrize(("version", "due"), [(1, []), (2, [0.75])])
def test_a_window_that_a_frozen_policy_was_not_trained_on_has_no_hindsight(version: int, due: list[float]) -> None:
    tracker = BoundaryTracker(Options.of(hindsight=True, critic_warmup_updates=2))
    tracker.after_update([FIRST], report((FIRST, 0.25, 0.5, 0.0)), version)
    last = end(
        context=[9, 1, 2],
        context_sampled=np.array([0, 1, 1], np.uint8),
        context_rewards=np.zeros(3, np.float32),
        window_index=1,
    )
    (closed,) = tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), version + 1)
    assert closed.return_after == 1.0
    assert [fragment.hindsight_residual for fragment in tracker.due()] == due


@pytest.mark.parametrize(("boundary_value", "residual"), [("hold", 0.75), ("bootstrap", 0.5)])
def test_hindsight_is_what_the_value_that_was_used_missed(boundary_value: str, residual: float) -> None:
    tracker = BoundaryTracker(Options.of(hindsight=True, boundary_value=boundary_value))
    tracker.after_update([FIRST], report((FIRST, 0.25, 0.5, 0.1)), 0)
    last = end(
        context=[9, 1, 2],
        context_sampled=np.array([0, 1, 1], np.uint8),
        context_rewards=np.zeros(3, np.float32),
        window_index=1,
    )
    tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), 1)
    assert [fragment.hindsight_residual for fragment in tracker.due()] == [residual]


def ten_episodes(tracker: BoundaryTracker, number: int, rng: np.random.Generator, *, knows: bool) -> None:
    """An update with ten responses of three windows, whose last difference foretells the return or does not."""
    fragments, rows = [], []
    for episode in range(10 * number, 10 * number + 10):
        reward = float(rng.random() < 0.5)
        after = 0.2 + 0.6 * reward if knows else rng.random()
        windows = [
            replace(FIRST, episode_id=episode),
            replace(SECOND, episode_id=episode),
            end(episode_id=episode, rewards=[0.0, reward], context_rewards=np.zeros(5, np.float32)),
        ]
        fragments += windows
        rows += [
            (windows[0], 0.5, rng.normal(0.5, 0.1), 0.5),
            (windows[1], 0.5, after, 0.5),
            (windows[2], 0.0, 0.0, 0.0),
        ]
    tracker.after_update(fragments, report(*rows), number)


def test_the_policy_waits_until_the_critic_has_seen_enough_responses() -> None:
    rng = np.random.default_rng(0)
    options = Options.of(critic_warmup_responses=25)
    tracker, frozen = BoundaryTracker(options), []
    for number in range(5):
        frozen.append(tracker.settings(number).policy_is_frozen)
        ten_episodes(tracker, number, rng, knows=True)
        # It goes on from a checkpoint.
        tracker = BoundaryTracker(options, known=tracker.known())
    assert frozen == [True, True, True, False, False]
    assert tracker.warmup_responses == 50
    assert BoundaryTracker(Options.of(critic_warmup_updates=3)).warmup_responses is None
    both = BoundaryTracker(options.replace(critic_warmup_updates=7), known=tracker.known())
    assert [both.settings(number).policy_is_frozen for number in (6, 7)] == [True, False]


def test_windows_of_a_frozen_policy_have_no_hindsight_however_long_it_lasts() -> None:
    rng = np.random.default_rng(0)
    tracker = BoundaryTracker(Options.of(hindsight=True, critic_warmup_responses=15))
    due = []
    for number in range(3):
        ten_episodes(tracker, number, rng, knows=True)
        due.append(len(tracker.due()))
    assert due == [0, 0, 20]


@pytest.mark.parametrize("knows", [True, False])
def test_a_critic_whose_differences_are_borne_out_ends_its_warmup(knows: bool) -> None:
    rng = np.random.default_rng(0)
    options = Options.of(critic_warmup_responses=1000, critic_warmup_slope=0.5)
    tracker = BoundaryTracker(options)
    for number in range(8):
        ten_episodes(tracker, number, rng, knows=knows)
    assert tracker.settings(8).policy_is_frozen is not knows
    # It has ended for good, also where the critic is worse for a while.
    tracker = BoundaryTracker(options, known=tracker.known())
    for number in range(8, 40):
        ten_episodes(tracker, number, rng, knows=False)
    assert tracker.settings(40).policy_is_frozen is not knows


def test_the_factor_on_unfinished_windows_follows_what_returns_bear_out() -> None:
    rng = np.random.default_rng(0)
    fixed = BoundaryTracker(Options.of(unfinished_advantage_scale=0.5))
    knowing, guessing = (BoundaryTracker(Options.of(unfinished_advantage_scale="auto")) for _ in range(2))
    assert (fixed.settings(0).unfinished_scale, knowing.settings(0).unfinished_scale) == (None, 0.0)
    for number in range(8):
        ten_episodes(knowing, number, rng, knows=True)
        ten_episodes(guessing, number, rng, knows=False)
    assert knowing.settings(8).unfinished_scale == 1.0
    guessed = guessing.settings(8)
    assert guessed.unfinished_scale is not None
    assert guessed.unfinished_scale < 0.3
    resumed = BoundaryTracker(Options.of(unfinished_advantage_scale="auto"), known=guessing.known())
    assert resumed.settings(8) == guessed


@pytest.mark.parametrize(("kl_in", "known"), [("reward", False), ("loss", True)])
def test_values_with_kl_are_not_compared_with_returns_without_it(kl_in: str, known: bool) -> None:
    tracker = BoundaryTracker(Options.of(kl_coef=0.1, kl_in=kl_in))
    tracker.after_update([FIRST], report((FIRST, 0.25, 0.5, 0.1)), 0)
    last = end(
        context=[9, 1, 2],
        context_sampled=np.array([0, 1, 1], np.uint8),
        context_rewards=np.zeros(3, np.float32),
        window_index=1,
    )
    assert bool(tracker.after_update([last], report((last, 0.0, 0.0, 0.0)), 1)) == known


def test_an_episode_that_is_left_out_leaves_nothing_behind() -> None:
    tracker = BoundaryTracker(Options.of(hindsight=True))
    tracker.after_update([FIRST], report((FIRST, 0.25, 0.5, 0.1)), 0)
    tracker.forget([4])
    # A window that still waited in the queue when the episode ended.
    assert tracker.after_update([SECOND], report((SECOND, 0.75, 1.0, 0.2)), 1) == []
    assert tracker.due() == []
    assert not tracker._open
    assert not tracker._hindsight._trained
