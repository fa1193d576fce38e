"""Intervals of means over repeats, paired comparisons, and the window at which quality begins to fall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEAST_FOR_INTERVAL = 3
"""With two repeats a t-interval is 13 standard deviations wide: nobody is served."""
LEAST_FOR_BOOTSTRAP = 10
"""Below, resampling a handful of values gives intervals that are too narrow."""
TOLERANCE = 0.05
"""Loss of accuracy, a share, that must be ruled out before windows are said to cost nothing."""
_RESAMPLES = 4999
_ROUNDING = 1e-12

Alternative = Literal["less", "greater", "two-sided"]


@dataclass(frozen=True)
class Estimate:
    """A mean over repeats."""

    mean: float
    low: float
    """Of the interval; NaN where there are too few repeats."""
    high: float
    n: int


@dataclass(frozen=True)
class Comparison:
    """Repeats of one group against those of the reference with the same seeds."""

    difference: Estimate
    """Group minus reference, of seeds that both have."""
    p: float
    """Of the paired t-test; NaN below `LEAST_FOR_INTERVAL` pairs."""
    p_holm: float
    """The same, corrected for the number of comparisons made together."""

    def significant(self) -> bool:
        """Whether the difference is taken for one."""
        return bool(self.p_holm <= 1 - CONFIDENCE)


def mean_with_interval(values: Sequence[float], *, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Estimate:
    """Mean and its 95 % interval: Student's t for 3 to 9 values, BCa bootstrap from 10 on, none below 3.

    Args:
        values: Of independent repeats.
        bounds: What the quantity cannot leave; the interval is cut there.
    """
    array = np.asarray(values, np.float64)
    n = len(array)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    mean = float(array.mean())
    if n < LEAST_FOR_INTERVAL:
        return Estimate(mean, np.nan, np.nan, n)
    if np.ptp(array) < _ROUNDING:
        return Estimate(mean, mean, mean, n)
    if n < LEAST_FOR_BOOTSTRAP:
        low, high = stats.t.interval(CONFIDENCE, n - 1, loc=mean, scale=stats.sem(array))
    else:
        low, high = stats.bootstrap(
            (array,), np.mean, confidence_level=CONFIDENCE, n_resamples=_RESAMPLES, method="BCa", rng=0
        ).confidence_interval
    return Estimate(mean, max(float(low), bounds[0]), min(float(high), bounds[1]), n)


def method_of_interval(n: int) -> str:
    """How `mean_with_interval` makes the interval of n repeats."""
    if n < LEAST_FOR_INTERVAL:
        return f"none: {LEAST_FOR_INTERVAL} repeats are the least"
    return "Student's t" if n < LEAST_FOR_BOOTSTRAP else f"BCa bootstrap, {_RESAMPLES} resamples"


def compare_with(
    reference: Mapping[int, float], groups: Sequence[Mapping[int, float]], alternative: Alternative
) -> list[Comparison]:
    """Compares groups with a reference by paired t-tests, corrected by Holm's method for their number.

    Args:
        reference: Values by seed.
        groups: The same of each group; seeds that the reference lacks are left out.
        alternative: What is asked of a group against the reference.
    """
    pairs = [
        [(values[seed], reference[seed]) for seed in sorted(values.keys() & reference.keys())] for values in groups
    ]
    tests = [_paired_test(np.array(pair, np.float64).reshape(-1, 2), alternative) for pair in pairs]
    adjusted = holm([p for p in tests if not np.isnan(p)])
    corrected = iter(adjusted)
    return [
        Comparison(mean_with_interval([a - b for a, b in pair]), p, p if np.isnan(p) else next(corrected))
        for pair, p in zip(pairs, tests, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: the k-th smallest of m is multiplied by m - k + 1, never below the one before."""
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(np.argsort(p_values, kind="stable")):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


@dataclass(frozen=True)
class Inflection:
    """The window at which efficiency begins to cost quality."""

    status: Literal["found", "not reached", "undetermined"]
    window: int | None
    """The shortest that is not worse than the longest, nor is any between; None if undetermined."""
    reason: str
    """Why it is undetermined."""
    comparisons: Mapping[int, Comparison]
    """Every window but the longest against the longest."""


def find_inflection(quality: Mapping[int, Mapping[int, float]]) -> Inflection:
    """Finds the shortest window that is not significantly worse than the longest, nor any window between them.

    Each window is compared with the longest by a one-sided t-test on pairs of runs with the same seed, corrected by Holm's
    method. Not significantly worse is not the same as equal: where no window is worse, but the interval of a difference leaves
    room for a loss of more than `TOLERANCE`, nothing has been determined.

    Args:
        quality: By window length, by seed.
    """
    windows = sorted(quality, reverse=True)
    if len(windows) < 2:
        return Inflection("undetermined", None, "there is one window length", {})
    longest, *shorter = windows
    found = compare_with(quality[longest], [quality[window] for window in shorter], "less")
    comparisons = dict(zip(shorter, found, strict=True))
    few = [window for window in shorter if comparisons[window].difference.n < LEAST_FOR_INTERVAL]
    if few:
        pairs = comparisons[few[0]].difference.n
        return Inflection(
            "undetermined",
            None,
            f"window {few[0]} shares {pairs} seed{'' if pairs == 1 else 's'} with the longest, {LEAST_FOR_INTERVAL} are "
            "the least for a test",
            comparisons,
        )
    kept = longest
    for window in shorter:
        if comparisons[window].significant():
            return Inflection("found", kept, "", comparisons)
        kept = window
    hidden = {window: -one.difference.low for window, one in comparisons.items()}
    most = max(hidden, key=hidden.__getitem__)
    if hidden[most] > TOLERANCE:
        reason = (
            f"no window is significantly worse than the longest, but seeds differ so much that window {most} may be worse by "
            f"{100 * hidden[most]:.0f} points; more seeds or more evaluation prompts would tell"
        )
        return Inflection("undetermined", None, reason, comparisons)
    return Inflection("not reached", kept, "", comparisons)


def _paired_test(pairs: np.ndarray, alternative: Alternative) -> float:
    if len(pairs) < LEAST_FOR_INTERVAL:
        return float("nan")
    differences = pairs[:, 0] - pairs[:, 1]
    if np.ptp(differences) < _ROUNDING:  # The test divides by their spread; all of one size, they leave no doubt.
        mean = float(differences.mean())
        against = {"less": mean < -_ROUNDING, "greater": mean > _ROUNDING, "two-sided": abs(mean) > _ROUNDING}
        return 0.0 if against[alternative] else 1.0
    return float(stats.ttest_rel(pairs[:, 0], pairs[:, 1], alternative=alternative).pvalue)
