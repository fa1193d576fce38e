"""The accuracy that a run will end with, from the first part of its learning curve, with a 90 % interval.

    p(x) = A_0 + (A - A_0) / (1 + (C / x)^B)                    the curve, as in ScaleRL (arXiv 2510.13786, equation 1)
    held-out accuracy at x    ~ Normal(p, p (1 - p) / n + T^2)
    training accuracy at x    ~ Normal(p + o, p (1 - p) D / k + T^2)
    the end                   = p(1) + noise of the run + noise of n prompts

x is the share of the run's tokens, A_0 the accuracy before training, A the asymptote, C the share at half of the gain, B the steepness.
o is what training prompts differ from held-out ones, D how much less k responses say than k independent ones (groups share
prompts), T what a real curve leaves the sigmoid by.

A fit would be sure of itself where it cannot be: a curve that is flat so far fits any asymptote. So the parameters are not fitted.
All that agree with what was seen are kept, as far as they agree (posterior draws), and the interval holds 90 % of their ends. What was
not seen stays as wide as the prior is: `_Prior` says what is taken for possible, and docs/planning.md on which runs that was judged.

Draws are made by sequential Monte Carlo in the unit cube of the prior's quantiles: the likelihood comes in by steps, and after each
the draws are resampled and moved by Metropolis steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import ndtri

LEVEL = 0.9
"""Of the interval."""
RANKS = np.linspace(0.0, 1.0, 41)
"""Of quantiles."""
_DRAWS = 4000
_MOVES = 8
"""Metropolis steps after each part of the likelihood."""
_BINS = 6
"""Of training accuracies."""
_LEARNED = 0.75
"""An interval that is narrower than this share of the one from the start alone has learned something from the curve."""
_NARROW = 0.2
"""An interval that is narrower than this says something, whatever it was learned from."""


@dataclass(frozen=True)
class _Prior:
    """What is taken for possible before a curve is seen; pairs are ends of a range, even in the logarithm."""

    gain: tuple[float, float] = (2.0, 0.6)
    """Shape of the Kumaraswamy distribution of (A - A_0) / (1 - A_0): most runs are made because they can succeed."""
    declines: float = 0.04
    """Share of curves that end below their start, anywhere between it and 0."""
    still: float = 0.05
    """Share of curves that stay where they are."""
    midpoint: tuple[float, float] = (0.005, 1.0)
    """C, as a share of the run's tokens: budgets are chosen so that something happens in them."""
    late: float = 3.0
    """log C has the distribution of the largest of so many draws from its range: early midpoints are possible, late ones are usual."""
    steepness: tuple[float, float] = (0.8, 12.0)
    offset: float = 0.04
    """Standard deviation of o."""
    design_effect: tuple[float, float] = (1.0, 8.0)
    curve: float = 0.03
    """T."""
    run: float = 0.06
    """Scale of the run's noise at its end, by sqrt(p (1 - p)), Student's t with four degrees of freedom."""


@dataclass(frozen=True)
class FinalAccuracy:
    """A forecast: shares."""

    quantiles: tuple[float, ...]
    """At `RANKS`."""
    tells: bool
    """Whether the interval is narrow, or narrower than what the start of the curve alone gives."""

    @property
    def low(self) -> float:
        """`low` and `high` hold `LEVEL` of what is possible, the same on both sides."""
        return quantile(self.quantiles, (1 - LEVEL) / 2)

    @property
    def median(self) -> float:
        return quantile(self.quantiles, 0.5)

    @property
    def high(self) -> float:
        return quantile(self.quantiles, (1 + LEVEL) / 2)


def quantile(quantiles: Sequence[float], rank: float) -> float:
    """Returns the accuracy of a rank in [0, 1], between quantiles at `RANKS` linearly."""
    return float(np.interp(rank, RANKS, quantiles))


def rank_of(quantiles: Sequence[float], accuracy: float) -> float:
    """Returns the rank of an accuracy among what was possible, in [0, 1]; of several, where quantiles are equal, the middle one."""
    found = np.asarray(quantiles)
    ends = np.searchsorted(found, accuracy, "left"), np.searchsorted(found, accuracy, "right")
    if ends[0] != ends[1]:
        return float((RANKS[ends[0]] + RANKS[ends[1] - 1]) / 2)
    return float(np.interp(accuracy, found, RANKS))


def interval_by_ranks(quantiles: Sequence[float], ranks: Sequence[float]) -> tuple[float, float] | None:
    """Returns the `LEVEL` interval of a forecast, moved by where the truth of other forecasts lay (split conformal).

    It holds the truth with that probability where runs are exchangeable: the same task and kind of run. It knows nothing of another task.

    Args:
        quantiles: Of the forecast, at `RANKS`.
        ranks: `rank_of` the truth among the quantiles of each other run.

    Returns:
        Lower and upper end; None where there are too few others, below 19.
    """
    outside = math.floor((1 - LEVEL) / 2 * (len(ranks) + 1) + 1e-9)
    if outside < 1:
        return None
    low, *_, high = np.sort(ranks)[outside - 1 : len(ranks) - outside + 1]
    return quantile(quantiles, low), quantile(quantiles, high)


def forecast_final_accuracy(
    heldout: np.ndarray, training: np.ndarray, prompts: int, *, seed: int = 0, prior: _Prior | None = None
) -> FinalAccuracy:
    """Returns the held-out accuracy at the end of a run.

    Args:
        heldout: float [E, 3], evaluations so far: share of the run's tokens in [0, 1), accuracy, number of prompts.
        training: float [T, 3], training batches so far: share of the tokens in (0, 1), accuracy of the responses that finished,
            their number, above 0.
        prompts: Number of held-out prompts that the last accuracy will be measured on.
        seed: Of the draws.
        prior: For tests of the prior; None is the one that was judged.

    Raises:
        ValueError: shapes that differ, nothing to forecast from, or numbers out of range.
    """
    for name, points in (("heldout", heldout), ("training", training)):
        if points.ndim != 2 or points.shape[1] != 3:
            raise ValueError(f"{name} must have the shape [N, 3], got {list(points.shape)}")
        shares, accuracies, counts = points.T
        if not ((shares >= 0) & (shares < 1) & (accuracies >= 0) & (accuracies <= 1) & (counts > 0)).all():
            raise ValueError(f"{name}: shares of tokens are in [0, 1), accuracies in [0, 1], counts above 0")
    if not len(heldout) + len(training):
        raise ValueError("there is no accuracy to forecast from")
    if prompts < 1:
        raise ValueError(f"prompts={prompts}: must be at least 1")
    prior = prior or _Prior()
    heldout, training = heldout[np.argsort(heldout[:, 0])], _binned(training)
    whole = _Curves(heldout, training, prior).ends(prompts, seed)
    first = _Curves(heldout[:1], training[: 0 if len(heldout) else 1], prior).ends(prompts, seed)
    found, start = (FinalAccuracy(tuple(map(float, ends)), tells=False) for ends in (whole, first))
    return replace(found, tells=found.high - found.low < max(_NARROW, _LEARNED * (start.high - start.low)))


def _binned(training: np.ndarray) -> np.ndarray:
    """Training batches in `_BINS` of equal width, float [at most `_BINS`, 3]; means are over responses."""
    if not len(training):
        return training
    shares, accuracies, counts = training.T
    place = np.minimum((shares / shares.max() * _BINS).astype(int), _BINS - 1)
    total, *sums = (np.bincount(place, counts * of, _BINS) for of in (np.ones(len(counts)), shares, accuracies))
    held = total > 0
    return np.stack([sums[0][held] / total[held], sums[1][held] / total[held], total[held]], axis=1)


class _Curves:
    """Curves that agree with what was seen of one."""

    def __init__(self, heldout: np.ndarray, training: np.ndarray, prior: _Prior) -> None:
        self._points = np.concatenate([heldout, training])
        self._is_training = np.arange(len(self._points)) >= len(heldout)
        self._prior = prior

    def ends(self, prompts: int, seed: int) -> np.ndarray:
        """Quantiles at `RANKS` of the accuracy that `prompts` prompts will show when all tokens are spent, float [41]."""
        generator = np.random.default_rng(seed)
        parameters = self.parameters(self._draws(generator))
        p = curve(parameters, np.ones(1))[:, 0]
        noise = self._prior.run * generator.standard_t(4, len(p)) * np.sqrt(p * (1 - p))
        p = np.clip(p + noise, 0.0, 1.0)
        return np.asarray(np.quantile(generator.binomial(prompts, p) / prompts, RANKS))

    def _draws(self, generator: np.random.Generator) -> np.ndarray:
        """Draws of the posterior in the unit cube, float [`_DRAWS`, 6]."""
        cube = generator.uniform(size=(_DRAWS, 6))
        likelihood = self._log_likelihood(cube)
        power = 0.0
        while power < 1.0:
            step = _next_step(likelihood, 1.0 - power)
            power += step
            weights = np.exp(step * (likelihood - likelihood.max()))
            chosen = generator.choice(_DRAWS, _DRAWS, p=weights / weights.sum())
            cube, likelihood = cube[chosen], likelihood[chosen]
            for _ in range(_MOVES):
                # Differences of draws have the spread and the correlations of the draws; for a mix of short and long moves, see
                # ter Braak 2006, doi 10.1007/s11222-006-8769-1.
                pairs = cube[generator.permutation(_DRAWS)] - cube[generator.permutation(_DRAWS)]
                scale = generator.choice([0.2, 0.5, 1.0], size=(_DRAWS, 1))
                moved = cube + scale * pairs + generator.normal(0, 1e-3, cube.shape)
                # Mirroring at the walls would not be symmetric: differences are correlated.
                inside = ((moved > 0) & (moved < 1)).all(1)
                new = np.where(inside, self._log_likelihood(moved), -np.inf)
                taken = np.log(generator.uniform(size=_DRAWS)) < power * (new - likelihood)
                cube, likelihood = np.where(taken[:, None], moved, cube), np.where(taken, new, likelihood)
        return cube

    def _log_likelihood(self, cube: np.ndarray) -> np.ndarray:
        """Log-likelihood of what was seen, float [D]."""
        shares, accuracies, counts = self._points.T
        parameters = self.parameters(cube)
        offset, effect = parameters[:, 4:5], parameters[:, 5:6]
        p = np.clip(curve(parameters, shares) + self._is_training * offset, 0.005, 0.995)
        # The first evaluation is of the model that training begins with: the curve is there by definition.
        leaves = np.where((shares > 0) | self._is_training, self._prior.curve, 0.0)
        variance = p * (1 - p) * np.where(self._is_training, effect, 1.0) / counts + leaves**2
        return np.asarray(-0.5 * (np.log(variance) + (accuracies - p) ** 2 / variance).sum(1))

    def parameters(self, cube: np.ndarray) -> np.ndarray:
        """A_0, A, C, B, o, D of places in the cube, float [D, 6]."""
        prior = self._prior
        start, rank, midpoint, steepness, offset, effect = np.clip(cube, 1e-9, 1 - 1e-9).T
        shape, other = prior.gain
        moving = 1 - prior.declines - prior.still
        above = np.maximum((rank - prior.declines - prior.still) / moving, 0.0)
        gain = (1 - (1 - above) ** (1 / other)) ** (1 / shape)
        below = np.minimum(rank / prior.declines, 1.0)
        asymptote = start * below + (1 - start) * gain
        ranges = [
            low * (high / low) ** at
            for (low, high), at in (
                (prior.midpoint, midpoint ** (1 / prior.late)),
                (prior.steepness, steepness),
                (prior.design_effect, effect),
            )
        ]
        return np.stack([start, asymptote, ranges[0], ranges[1], prior.offset * ndtri(offset), ranges[2]], axis=1)


def curve(parameters: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """Accuracy at shares of the tokens, float [D, N], from parameters [D, 6] and shares [N]."""
    start, asymptote, midpoint, steepness = (parameters[:, i : i + 1] for i in range(4))
    return np.asarray(start + (asymptote - start) / (1 + (midpoint / np.maximum(shares, 1e-9)) ** steepness))


def _next_step(likelihood: np.ndarray, most: float) -> float:
    """How much of the likelihood comes in next: half of the draws are to count after it."""
    low, high = 0.0, most
    for _ in range(40):
        middle = high if low == 0.0 and high == most else (low + high) / 2
        weights = np.exp(middle * (likelihood - likelihood.max()))
        if weights.sum() ** 2 / (weights**2).sum() >= 0.5 * len(weights):
            if middle == most:
                return most
            low = middle
        else:
            high = middle
    return low or high
