"""Accuracy over compute as a sigmoid, so that where a method ends and how fast it gets there are told apart.

    A(C) = A_0 + (A - A_0) / (1 + (C_mid / C)^B)

A is the asymptote, C_mid the compute at half of the gain, B the steepness (ScaleRL, arXiv 2510.13786, equation 1). A_0 is the
accuracy before training, which is measured. Intervals come from resampling seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import least_squares

_RESAMPLES = 200
_LEAST_POINTS = 4


@dataclass(frozen=True)
class Sigmoid:
    """A fit; `low` and `high` hold 95 % of the fits to resampled seeds, and are NaN with fewer than three."""

    asymptote: float
    midpoint: float
    """In units of compute."""
    steepness: float
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    def at(self, compute: np.ndarray, start: float) -> np.ndarray:
        """Accuracy at the given compute, [N], where training began at accuracy `start`."""
        return _sigmoid(np.array([self.asymptote, np.log(self.midpoint), self.steepness]), compute, start)


def fit_sigmoid(curves: Sequence[tuple[np.ndarray, np.ndarray]], *, seed: int = 0) -> Sigmoid | None:
    """Fits the accuracies of several runs.

    Args:
        curves: Compute (rising from 0 on) and accuracy of each run's evaluations, [N] each.
        seed: Of the resampling.

    Returns:
        The fit; None where there are fewer than four evaluations, or accuracy is not known.
    """
    best = _fit(curves)
    if best is None:
        return None
    low = high = (float("nan"),) * 3
    if len(curves) >= 3:
        generator = np.random.default_rng(seed)
        fits = [_fit([curves[i] for i in generator.integers(0, len(curves), len(curves))]) for _ in range(_RESAMPLES)]
        found = np.array([fit for fit in fits if fit is not None])
        low, high = (tuple(map(float, np.percentile(found, at, axis=0))) for at in (2.5, 97.5))  # type: ignore[assignment]
    asymptote, midpoint, steepness = map(float, best)
    return Sigmoid(asymptote, midpoint, steepness, low, high)


def _fit(curves: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray | None:
    """Asymptote, midpoint and steepness by least squares over all points of all runs."""
    start = float(np.mean([accuracy[0] for _, accuracy in curves]))
    compute = np.concatenate([spent[1:] for spent, _ in curves])
    accuracy = np.concatenate([values[1:] for _, values in curves])
    if len(compute) < _LEAST_POINTS or not np.isfinite(accuracy).all() or compute.min() <= 0:
        return None
    top = float(np.clip(accuracy.max(), 1e-3, 1.0))
    bounds = ([0.0, np.log(compute.min()) - 3, 0.2], [1.0, np.log(compute.max()) + 3, 20.0])
    begin = [top, float(np.log(np.median(compute))), 2.0]
    fit = least_squares(lambda x: _sigmoid(x, compute, start) - accuracy, begin, bounds=bounds)
    return np.array([fit.x[0], np.exp(fit.x[1]), fit.x[2]])


def _sigmoid(parameters: np.ndarray, compute: np.ndarray, start: float) -> np.ndarray:
    asymptote, log_midpoint, steepness = parameters
    with np.errstate(divide="ignore", over="ignore"):
        return start + (asymptote - start) / (1 + np.exp(steepness * (log_midpoint - np.log(compute))))
