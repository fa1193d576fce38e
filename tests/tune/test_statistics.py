from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from tppo_rl.tune.statistics import compare_with, find_inflection, holm, mean_with_interval, method_of_interval


def test_the_interval_of_three_is_students_t() -> None:
    one = mean_with_interval([1.0, 2.0, 3.0])
    # 4.3027 is the 97.5 % quantile of Student's t with 2 degrees of freedom.
    half = 4.302653 * 1.0 / math.sqrt(3)
    assert (one.mean, one.low, one.high, one.n) == pytest.approx((2.0, 2.0 - half, 2.0 + half, 3))


def test_the_interval_is_cut_at_the_bounds_of_the_quantity() -> None:
    one = mean_with_interval([0.9, 0.95, 1.0], bounds=(0.0, 1.0))
    assert one.high == 1.0
    assert 0.8 < one.low < 0.9


@pytest.mark.parametrize("values", [[], [0.5], [0.4, 0.6]])
def test_few_repeats_have_no_interval(values: list[float]) -> None:
    one = mean_with_interval(values)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert one.n == len(values)
    assert "none" in method_of_interval(len(values))


def test_the_bootstrap_of_many_is_skewed_as_the_values_are() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    one = mean_with_interval(values.tolist())
    assert one.high - one.mean > one.mean - one.low
    assert one.high - one.low == pytest.approx(2 * 1.96 * stats.sem(values), rel=0.25)
    assert "bootstrap" in method_of_interval(40)


def test_holm_worked_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.03, 0.5: times 4, 3, 2, 1, and never below the one before.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([]) == []


def test_pairs_are_those_of_the_same_seed() -> None:
    reference = {0: 0.5, 1: 0.7, 2: 0.9, 3: 0.2}
    (found,) = compare_with(reference, [{2: 0.8, 1: 0.65, 0: 0.35, 7: 0.0}], "two-sided")
    differences = np.array([-0.15, -0.05, -0.1])
    assert found.difference.n == 3
    assert found.difference.mean == pytest.approx(-0.1)
    t = differences.mean() / (differences.std(ddof=1) / math.sqrt(3))
    assert found.p == pytest.approx(2 * stats.t.cdf(t, 2))
    assert found.p_holm == found.p


def test_a_group_without_enough_pairs_does_not_count_in_the_correction() -> None:
    reference = {0: 0.5, 1: 0.7, 2: 0.9}
    alone, few = compare_with(reference, [{0: 0.4, 1: 0.65, 2: 0.8}, {0: 0.1}], "less")
    assert alone.p_holm == alone.p
    assert math.isnan(few.p_holm)
    assert not few.significant()


@pytest.mark.parametrize(("shift", "p"), [(0.0, 1.0), (-0.1, 0.0), (0.1, 1.0)])
def test_differences_without_spread_are_decided_by_their_sign(shift: float, p: float) -> None:
    reference = {0: 0.5, 1: 0.7, 2: 0.9}
    (found,) = compare_with(reference, [{seed: value + shift for seed, value in reference.items()}], "less")
    assert found.p == p


def around(mean: float) -> dict[int, float]:
    return {0: mean - 0.01, 1: mean + 0.02, 2: mean - 0.015}


def less_noise(mean: float) -> dict[int, float]:
    return {0: mean - 0.012, 1: mean + 0.021, 2: mean - 0.014}


def test_the_inflection_is_the_shortest_window_before_the_loss() -> None:
    found = find_inflection({320: around(0.9), 160: less_noise(0.9), 80: less_noise(0.901), 40: less_noise(0.6)})
    assert (found.status, found.window) == ("found", 80)
    assert found.comparisons[40].significant()
    assert not found.comparisons[80].significant()


def test_a_short_window_that_is_good_by_chance_does_not_hide_a_loss_at_a_longer_one() -> None:
    found = find_inflection({320: around(0.9), 160: less_noise(0.6), 80: less_noise(0.9)})
    assert (found.status, found.window) == ("found", 320)


def test_without_a_loss_there_is_no_inflection() -> None:
    found = find_inflection({320: around(0.9), 160: less_noise(0.9), 80: less_noise(0.92)})
    assert (found.status, found.window) == ("not reached", 80)


def test_noise_that_may_hide_a_loss_leaves_it_open() -> None:
    found = find_inflection({320: {0: 0.9, 1: 0.7, 2: 0.8}, 80: {0: 0.7, 1: 0.9, 2: 0.8}})
    assert (found.status, found.window) == ("undetermined", None)
    # Differences -0.2, 0.2 and 0: 4.3027 standard errors of 0.2 / sqrt(3) below their mean, 0.
    assert "may be worse by 50 points" in found.reason


@pytest.mark.parametrize(
    ("quality", "reason"),
    [
        ({320: around(0.9)}, "one window length"),
        ({320: around(0.9), 80: {0: 0.9, 1: 0.8}}, "window 80 shares 2 seeds"),
        ({320: around(0.9), 80: {5: 0.9, 6: 0.8, 0: 0.1}}, "window 80 shares 1 seed "),
    ],
)
def test_it_says_when_it_cannot_be_determined(quality: dict[int, dict[int, float]], reason: str) -> None:
    found = find_inflection(quality)
    assert (found.status, found.window) == ("undetermined", None)
    assert reason in found.reason


@pytest.mark.parametrize("draw", [np.random.default_rng(seed).normal for seed in range(3)])
def test_the_interval_covers_the_mean_as_often_as_it_says(draw: Callable[..., np.ndarray]) -> None:
    covered = [one.low <= 0 <= one.high for one in (mean_with_interval(draw(size=3).tolist()) for _ in range(2000))]
    # Four standard errors of a share of 2,000.
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)
