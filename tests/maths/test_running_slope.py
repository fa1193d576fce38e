"""The regression of returns on the critic's differences over updates: right, forgetting, and honest about its error."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tppo_rl.maths.running_slope import RunningSlope
from tppo_rl.maths.value import difference_slope


def windows(
    rng: np.random.Generator, episodes: int, slope: float, per_episode: int = 1
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Values whose differences are borne out by a factor; the windows of an episode share their noise."""
    count = episodes * per_episode
    before, difference = rng.normal(size=count), rng.normal(size=count)
    noise = np.repeat(rng.normal(size=episodes), per_episode)
    return before, before + difference, 0.3 + 0.8 * before + slope * difference + noise, episodes


def test_one_update_gives_the_least_squares_fit() -> None:
    found = RunningSlope()
    before, after, returns, episodes = windows(np.random.default_rng(0), 50, 0.6)
    found.add(before, after, returns, episodes)
    estimate = found.estimate()
    assert estimate is not None
    assert estimate[0] == pytest.approx(difference_slope(before, after, returns))


@pytest.mark.parametrize("per_episode", [1, 6])
def test_the_standard_error_is_that_of_repeated_runs(per_episode: int) -> None:
    rng = np.random.default_rng(1)
    estimates = []
    for _ in range(200):
        found = RunningSlope()
        for _ in range(30):
            found.add(*windows(rng, 10, 0.5, per_episode))
        estimate = found.estimate()
        assert estimate is not None
        estimates.append(estimate)
    slopes, errors = np.array(estimates).T
    assert slopes.mean() == pytest.approx(0.5, abs=0.02)
    # Forgetting makes it an approximation; where windows err together it is on the safe side.
    assert 0.6 < slopes.std() / errors.mean() < 1.5 if per_episode == 1 else slopes.std() < 1.5 * errors.mean()


def test_what_was_long_ago_is_forgotten() -> None:
    rng, found = np.random.default_rng(2), RunningSlope()
    for _ in range(50):
        found.add(*windows(rng, 20, 0.0))
    assert found.scale() < 0.1
    for _ in range(80):
        found.add(*windows(rng, 20, 1.0))
    assert found.scale() > 0.85


def test_nothing_is_known_of_few_episodes_or_of_values_that_do_not_differ() -> None:
    found = RunningSlope()
    assert found.scale() == 0.0
    found.add(*windows(np.random.default_rng(3), 7, 1.0))
    assert found.estimate() is None
    same = RunningSlope()
    same.add(np.ones(40), np.ones(40), np.random.default_rng(4).normal(size=40), 40)
    assert same.estimate() is None
    none = np.zeros(0)
    same.add(none, none, none, 0)
    assert same.scale() == 0.0


def test_the_factor_stays_between_nothing_and_all() -> None:
    for slope, expected in [(-2.0, 0.0), (3.0, 1.0)]:
        found = RunningSlope()
        found.add(*windows(np.random.default_rng(5), 200, slope))
        assert found.scale() == expected


def test_its_state_goes_through_json() -> None:
    rng, found = np.random.default_rng(6), RunningSlope()
    found.add(*windows(rng, 30, 0.7))
    again = RunningSlope.from_state(json.loads(json.dumps(found.state())))
    more = windows(rng, 30, 0.7)
    found.add(*more)
    again.add(*more)
    assert again.estimate() == found.estimate()
