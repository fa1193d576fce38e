"""Statistics of several answers to each of some problems: avg@k, pass@k, majority@k, and their intervals over problems.

Problems are the independent draws, answers to one problem are not: every interval and test resamples problems, and takes all
answers of a problem together.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_RESAMPLES = 4999
_ROUNDING = 1e-12
_LEAST_PROBLEMS = 3


@dataclass(frozen=True)
class Interval:
    """A mean over problems with its 95 % interval."""

    mean: float
    low: float
    """NaN below three problems."""
    high: float
    n: int
    """Number of problems."""


@dataclass(frozen=True)
class Difference:
    """One model against another on the same problems."""

    interval: Interval
    """Of the first minus the second."""
    p: float
    """Two-sided, of the paired permutation test (signs of the differences are exchanged); NaN below three problems."""


def pass_at_k(correct: np.ndarray, k: int) -> np.ndarray:
    """Returns the probability that one of k answers is right, float64 [P] for each problem, without bias.

    With c right answers of n it is 1 - C(n - c, k) / C(n, k) (Chen et al., arXiv 2107.03374, equation 1).

    Args:
        correct: bool [P, n].
        k: Answers that are drawn, at most n.

    Raises:
        ValueError: k is not in 1 … n.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: must be in 1 … {n}, the number of answers")
    wrong = n - correct.sum(1)
    # C(w, k) / C(n, k) = (w / n) ((w - 1) / (n - 1)) …; a factor is 0 where there are fewer than k wrong answers.
    factors = (wrong[:, None] - np.arange(k)) / (n - np.arange(k))
    return 1.0 - np.prod(np.maximum(factors, 0.0), axis=1)


def majority_at_k(
    answers: Sequence[Sequence[Hashable]], correct: np.ndarray, k: int, *, draws: int = 200, seed: int = 0
) -> np.ndarray:
    """Returns the probability that the most frequent of k answers is right, float64 [P].

    Where several are the most frequent, one of them is taken at random. None is no answer and has no vote; without a vote the
    problem counts as wrong.

    Args:
        answers: [P][n], as they were extracted; equal ones are one candidate.
        correct: bool [P, n].
        k: Answers that vote, drawn without replacement.
        draws: Drawings for each problem, if k < n.
        seed: Of the drawings.

    Raises:
        ValueError: k is not in 1 … n.
    """
    n = correct.shape[1]
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: must be in 1 … {n}, the number of answers")
    rng = np.random.default_rng(seed)
    found = np.empty(len(answers))
    for problem, of_problem in enumerate(answers):
        voters = [np.arange(n)] if k == n else [rng.choice(n, k, replace=False) for _ in range(draws)]
        found[problem] = np.mean([_vote(of_problem, correct[problem], chosen) for chosen in voters])
    return found


def _vote(answers: Sequence[Hashable], correct: np.ndarray, voters: np.ndarray) -> float:
    votes: dict[Hashable, int] = defaultdict(int)
    right: dict[Hashable, list[bool]] = defaultdict(list)
    for voter in voters:
        if answers[voter] is not None:
            votes[answers[voter]] += 1
            right[answers[voter]].append(bool(correct[voter]))
    if not votes:
        return 0.0
    most = max(votes.values())
    return float(np.mean([np.mean(right[answer]) for answer, number in votes.items() if number == most]))


def mean_over_problems(values: np.ndarray) -> Interval:
    """Returns the mean of one value for each problem with its BCa bootstrap interval over problems.

    Args:
        values: float [P].
    """
    n = len(values)
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0)
    mean = float(np.mean(values))
    if n < _LEAST_PROBLEMS:
        return Interval(mean, np.nan, np.nan, n)
    if np.ptp(values) < _ROUNDING:
        return Interval(mean, mean, mean, n)
    interval = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=_RESAMPLES, method="BCa", rng=0
    ).confidence_interval
    return Interval(mean, float(interval.low), float(interval.high), n)


def compare(one: np.ndarray, other: np.ndarray) -> Difference:
    """Compares two models by one value for each problem, of the same problems in the same order.

    Args:
        one: float [P].
        other: float [P].
    """
    differences = np.asarray(one, np.float64) - np.asarray(other, np.float64)
    interval = mean_over_problems(differences)
    if len(differences) < _LEAST_PROBLEMS:
        return Difference(interval, np.nan)
    if np.ptp(differences) < _ROUNDING and abs(interval.mean) < _ROUNDING:
        return Difference(interval, 1.0)
    test = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=_RESAMPLES, alternative="two-sided", rng=0
    )
    return Difference(interval, float(test.pvalue))
