"""Standard errors and intervals of ratios of sums, by resampling clusters.

States of one response are no independent draws, and neither are responses to one problem. So clusters are drawn, with all
that is in them. A statistic is a function of sums over all clusters: a drawing is then one row of a matrix product.

    counts [D, C] drawn clusters   x   sums [C, M] of each cluster   ->   sums [D, M] of each drawing   ->   statistic [D]

Intervals are BCa (Efron 1987, doi 10.2307/2289144): percentiles of the drawings, moved by their share below the estimate and
by the skewness of the jackknife.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
_DRAWINGS = 1999
_LEAST_CLUSTERS = 3


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and its 95 % interval, over clusters."""

    value: float
    """NaN where there is nothing to compute it of."""
    error: float
    """Standard deviation of the drawings; NaN below three clusters."""
    low: float
    high: float
    n: int
    """Number of clusters."""


Statistic = Callable[[np.ndarray], np.ndarray]
"""From sums [..., M] to a number [...]; NaN where it is not defined."""


def cluster_sums(columns: Sequence[np.ndarray], weights: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """Returns the weighted sums of each cluster, float64 [C, 1 + M]; the first column is the sum of the weights.

    Args:
        columns: M arrays, float [N].
        weights: float [N].
        clusters: int64 [N], which cluster each entry belongs to; any numbers.

    Raises:
        ValueError: shapes that differ.
    """
    if any(column.shape != weights.shape for column in (*columns, clusters)):
        shapes = [column.shape for column in (*columns, clusters)]
        raise ValueError(f"columns and clusters must have the shape of the weights {weights.shape}, got {shapes}")
    _, index = np.unique(clusters, return_inverse=True)
    number = int(index.max()) + 1 if len(index) else 0
    weighted = [weights, *(weights * column for column in columns)]
    return np.stack([np.bincount(index, column, minlength=number) for column in weighted], axis=1)


@lru_cache(maxsize=2)
def drawn_counts(number: int, *, drawings: int = _DRAWINGS, seed: int = 0) -> np.ndarray:
    """Returns how often each of `number` clusters is drawn, float64 [drawings, number], read-only; rows sum to `number`."""
    drawn = np.random.default_rng(seed).integers(number, size=(drawings, number))
    flat = (drawn + number * np.arange(drawings)[:, None]).ravel()
    counts = np.bincount(flat, minlength=drawings * number).reshape(drawings, number).astype(np.float64)
    counts.flags.writeable = False
    return counts


def estimate(sums: np.ndarray, statistic: Statistic) -> Estimate:
    """Returns a statistic of sums with its standard error and interval.

    Args:
        sums: float64 [C, M], of each cluster (`cluster_sums`).
        statistic: See `Statistic`.
    """
    number = len(sums)
    if number == 0:
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    total = sums.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(statistic(total))
        if number < _LEAST_CLUSTERS or not np.isfinite(value):
            return Estimate(value, np.nan, np.nan, np.nan, number)
        drawn = statistic(drawn_counts(number) @ sums)
        left_out = statistic(total - sums)
    return Estimate(value, *spread(value, drawn, left_out), number)


def spread(value: float, drawn: np.ndarray, left_out: np.ndarray) -> tuple[float, float, float]:
    """Returns standard error, lower and upper end of the BCa interval.

    Args:
        value: The estimate.
        drawn: float [D], the same of each drawing; entries that are not finite are left out.
        left_out: float [C], the same without each cluster.
    """
    drawn, left_out = drawn[np.isfinite(drawn)], left_out[np.isfinite(left_out)]
    if not len(drawn) or not len(left_out):
        return np.nan, np.nan, np.nan
    error = float(drawn.std())
    # With half of the equal ones, so that a constant statistic has its percentile at one half.
    below = float(np.mean(drawn < value) + 0.5 * np.mean(drawn == value))
    bias = stats.norm.ppf(np.clip(below, 1 / (len(drawn) + 1), len(drawn) / (len(drawn) + 1)))
    deviations = left_out.mean() - left_out
    squares = float((deviations**2).sum())
    skewness = float((deviations**3).sum()) / (6.0 * squares**1.5) if squares > 0 else 0.0
    ends = []
    for share in ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2):
        moved = bias + stats.norm.ppf(share)
        ends.append(float(np.quantile(drawn, stats.norm.cdf(bias + moved / (1.0 - skewness * moved)))))
    return error, ends[0], ends[1]
