"""Statistics of answers against counts by hand, the closed form, enumeration, and their rate of coverage."""

from __future__ import annotations

from itertools import combinations
from math import comb

import numpy as np
import pytest

from tppo_rl.maths.answer_statistics import compare, majority_at_k, mean_over_problems, pass_at_k


@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 1), (5, 3), (5, 5), (32, 8)])
def test_pass_at_k_is_the_closed_form(n: int, k: int) -> None:
    correct = np.array([[index < right for index in range(n)] for right in range(n + 1)])
    expected = [1 - comb(n - right, k) / comb(n, k) for right in range(n + 1)]
    np.testing.assert_allclose(pass_at_k(correct, k), expected, atol=1e-12)


def test_pass_at_k_is_the_share_of_draws_with_a_right_answer() -> None:
    correct = np.array([[True, False, False, True, False, False]])
    draws = [correct[0, list(chosen)].any() for chosen in combinations(range(6), 2)]
    assert pass_at_k(correct, 2)[0] == pytest.approx(np.mean(draws))
    assert pass_at_k(correct, 1)[0] == pytest.approx(correct.mean())


def test_majority_by_hand() -> None:
    answers = [["7", "7", "8", None], ["1", "2", "1", "2"], [None, None, None, None]]
    correct = np.array([[True, True, False, False], [True, False, True, False], [False] * 4])
    # Two against one; a tie of right and wrong; nobody votes.
    np.testing.assert_allclose(majority_at_k(answers, correct, 4), [1.0, 0.5, 0.0])


def test_majority_of_fewer_is_that_of_all_drawings() -> None:
    answers = ["7", "7", "8", "9", "7"]
    correct = np.array([[True, True, False, False, True]])
    exact = np.mean(
        [
            majority_at_k([[answers[i] for i in chosen]], correct[:, list(chosen)], 3)[0]
            for chosen in combinations(range(5), 3)
        ]
    )
    assert majority_at_k([answers], correct, 3, draws=20_000)[0] == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("function", [pass_at_k, lambda c, k: majority_at_k([["1"] * 2], c, k)])
@pytest.mark.parametrize("k", [0, 3])
def test_more_answers_than_there_are(function: object, k: int) -> None:
    with pytest.raises(ValueError, match=rf"k={k}: must be in 1 … 2"):
        function(np.array([[True, False]]), k)  # type: ignore[operator]


def test_intervals_hold_the_truth_at_their_rate() -> None:
    """60 problems of differing difficulty, 4 answers to each: 95 % of the intervals hold the mean difficulty."""
    rng = np.random.default_rng(0)
    held = []
    for _ in range(300):
        difficulty = rng.beta(0.5, 1.0, 60)
        interval = mean_over_problems((rng.random((60, 4)) < difficulty[:, None]).mean(1))
        held.append(interval.low <= 0.5 / 1.5 <= interval.high)
    # Three standard errors of a share of 300, and half a percent that the bootstrap of 60 values is known to lack.
    assert np.mean(held) == pytest.approx(0.945, abs=0.038)


def test_p_values_are_small_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    ps = []
    for _ in range(200):
        difficulty = rng.beta(1.0, 1.0, 30)
        one, other = ((rng.random((30, 2)) < difficulty[:, None]).mean(1) for _ in range(2))
        ps.append(compare(one, other).p)
    assert np.mean(np.array(ps) <= 0.05) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 200)
    better = compare(np.full(30, 0.8) + rng.normal(0, 0.05, 30), np.full(30, 0.5))
    assert better.p < 0.01
    assert better.interval.low > 0.2


def test_too_few_problems_and_none_that_differ() -> None:
    assert np.isnan(mean_over_problems(np.array([0.5, 1.0])).low)
    assert mean_over_problems(np.array([0.5] * 5)).high == 0.5
    assert np.isnan(mean_over_problems(np.array([])).mean)
    assert compare(np.ones(5), np.ones(5)).p == 1.0
    assert np.isnan(compare(np.ones(2), np.zeros(2)).p)
