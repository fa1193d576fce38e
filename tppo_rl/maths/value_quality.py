"""What a critic knows, beside what it could know: its values against returns and against true values.

The true value V(s) of a state is not known. Two halves of continuations from it give two independent means h1 and h2 with
E[h1 | s] = E[h2 | s] = V(s). A square of V is a product of the halves, so that their noise drops out:

    Var(V)          =  Cov(h1, h2)
    Var(V - C)      =  Cov(h1 - C, h2 - C)                     C: the critic's values
    Cov(V, C)       =  Cov((h1 + h2) / 2, C)

Covariances are over states, weighted. With one weight for each token of a response (`States.weights`) every state that the
policy visits counts once. Given a visited state the return G of its response is then one more draw of its continuations, and

    Var(G) = Var(V) + E[Var(G | s)],      Var(V) / Var(G) is the ceiling: no function of states explains more.

Weights or subsets that look ahead (the length of the response, the share of it that is over) tell something of the return that
the state does not. There the ceiling bounds nothing; `explained_by_true_values` still says what V explains.

All numbers come with a standard error and an interval over clusters, which are problems (see `cluster_bootstrap`). Estimates
of variances from C clusters are low by about 1 / C of themselves; in ratios most of it cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from tppo_rl.maths.cluster_bootstrap import Estimate, cluster_sums, drawn_counts, estimate, spread

_AUROC_DRAWINGS = 299
_ROUNDING = 1e-12


@dataclass(frozen=True)
class States:
    """States that the policy has visited, N of them, with the returns of their responses and of their continuations."""

    returns: np.ndarray
    """float [N], G: discounted return of the response after the state."""
    first: np.ndarray
    """float [N], h1: mean return of the first half of the continuations."""
    second: np.ndarray
    """float [N], h2: of the second half."""
    weights: np.ndarray
    """float [N], number of tokens of its response that the state stands for, above 0."""
    clusters: np.ndarray
    """int64 [N], problem; responses to one problem are drawn together."""
    responses: np.ndarray
    """int64 [N], response."""
    positions: np.ndarray
    """int64 [N], tokens of the response before the state."""
    lengths: np.ndarray
    """int64 [N], tokens of the whole response."""

    def __post_init__(self) -> None:
        shapes = {field.name: getattr(self, field.name).shape for field in fields(self)}
        if len(set(shapes.values())) > 1 or self.returns.ndim != 1:
            raise ValueError(f"all arrays of States must have one shape [N], got {shapes}")
        if len(self.weights) and not self.weights.min() > 0:
            raise ValueError(f"weights must be positive, the smallest is {self.weights.min()}")

    def __len__(self) -> int:
        return len(self.returns)

    def where(self, chosen: np.ndarray) -> States:
        """Returns some of the states: bool [N], or int64 indices."""
        return States(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def by_response(self) -> States:
        """Returns the states with weights under which all responses count the same, however long."""
        _, index = np.unique(self.responses, return_inverse=True)
        return replace(self, weights=self.weights / np.bincount(index, self.weights)[index])

    @property
    def true_values(self) -> np.ndarray:
        """float64 [N], mean of the halves: V without bias, with noise."""
        return 0.5 * (np.asarray(self.first, np.float64) + self.second)


def ceiling(states: States) -> Estimate:
    """Returns Var(V) / Var(G), the share of the variance of returns that the true values explain."""
    g, one, other = states.returns, states.first, states.second
    sums = cluster_sums([g, g * g, one, other, one * other], states.weights, states.clusters)

    def statistic(s: np.ndarray) -> np.ndarray:
        return _covariance(s, 3, 4, 5) / _variance(s, 1, 2)

    return estimate(sums, statistic)


def explained_by_true_values(states: States) -> Estimate:
    """Returns 1 - Var(G - V) / Var(G), for any weights and subsets; with weights by tokens it is the ceiling again."""
    g = states.returns
    return _one_minus_ratio(states, (g - states.first, g - states.second), (g, g))


def explained_of_returns(states: States, values: np.ndarray) -> Estimate:
    """Returns 1 - Var(G - C) / Var(G): 0 for a constant critic, negative for a worse one, at most the ceiling.

    Args:
        states: N states.
        values: float [N], C.

    Raises:
        ValueError: `values` has another shape.
    """
    _check(states, values)
    g = states.returns
    return _one_minus_ratio(states, (g - values, g - values), (g, g))


def explained_of_true_values(states: States, values: np.ndarray) -> Estimate:
    """Returns 1 - Var(V - C) / Var(V), without the noise of continuations; arguments and errors as before."""
    _check(states, values)
    one, other = states.first, states.second
    return _one_minus_ratio(states, (one - values, other - values), (one, other))


class Agreement(NamedTuple):
    """How values move with true values."""

    correlation: Estimate
    """Of C and V, corrected for the noise of continuations; it may exceed 1 by chance. NaN where Cov(h1, h2) is not above 0."""
    slope: Estimate
    """Of V on C: 1 for values that are right on average, below 1 for values that differ too much among states."""


def agreement(states: States, values: np.ndarray) -> Agreement:
    """Returns correlation and slope over states; arguments and errors as before."""
    _check(states, values)
    return _agreement(values, states.first, states.second, states.weights, states.clusters)


def agreement_of_differences(states: States, values: np.ndarray) -> Agreement:
    """Returns correlation and slope of the differences V(s') - V(s) between neighbors: states of one response next to each other.

    Pairs count the same. Arguments and errors as before.
    """
    _check(states, values)
    before, after = neighbors(states)
    own, first, second = (array[after] - array[before] for array in (values, states.first, states.second))
    return _agreement(own, first, second, np.ones(len(before)), states.clusters[before])


def neighbors(states: States) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of neighbors, int64 [P] twice: index of the earlier state, and of the next one of the same response."""
    order = np.lexsort((states.positions, states.responses))
    same = states.responses[order][1:] == states.responses[order][:-1]
    return order[:-1][same], order[1:][same]


def mean_error(states: States, values: np.ndarray) -> Estimate:
    """Returns the mean of C - V, above 0 where the critic expects too much; arguments and errors as before."""
    _check(states, values)
    sums = cluster_sums([values - states.true_values], states.weights, states.clusters)
    return estimate(sums, lambda s: s[..., 1] / s[..., 0])


def root_mean_square_error(states: States, values: np.ndarray) -> Estimate:
    """Returns the root of E[(C - V)^2], without the noise of continuations; 0 where chance makes it negative.

    Arguments and errors as before.
    """
    _check(states, values)
    product = (values - states.first) * (values - states.second)
    sums = cluster_sums([product], states.weights, states.clusters)
    return estimate(sums, lambda s: np.sqrt(np.maximum(0.0, s[..., 1] / s[..., 0])))


def auroc(states: States, values: np.ndarray, positives: np.ndarray) -> Estimate:
    """Returns the probability that a state of a right response has a higher value than one of a wrong one; ties count half.

    Args:
        states: N states; their weights count.
        values: float [N].
        positives: bool [N], whether the response is right.

    Raises:
        ValueError: an argument has another shape.
    """
    _check(states, values)
    _check(states, positives)
    if not len(states):
        return Estimate(np.nan, np.nan, np.nan, np.nan, 0)
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.concatenate([[True], np.diff(values[order]) > 0]))
    names, index = np.unique(states.clusters[order], return_inverse=True)
    weights, right = states.weights[order], positives[order].astype(bool)

    def of(counts: np.ndarray) -> np.ndarray:
        """From how often clusters count [D, C] to the AUROC [D]."""
        drawn = counts[:, index] * weights
        high = np.add.reduceat(np.where(right, drawn, 0.0), starts, axis=1)
        low = np.add.reduceat(np.where(right, 0.0, drawn), starts, axis=1)
        won = (high * (np.cumsum(low, axis=1) - 0.5 * low)).sum(1)
        return won / (high.sum(1) * low.sum(1))

    number = len(names)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(of(np.ones((1, number)))[0])
        if number < 3 or not np.isfinite(value):
            return Estimate(value, np.nan, np.nan, np.nan, number)
        drawn = of(drawn_counts(number, drawings=_AUROC_DRAWINGS))
        left_out = np.concatenate([of(1.0 - np.eye(number)[start : start + 64]) for start in range(0, number, 64)])
    return Estimate(value, *spread(value, drawn, left_out), number)


class CalibrationRow(NamedTuple):
    """States whose values lie in one range."""

    share: float
    """Of all weight."""
    value: float
    """Mean of C."""
    returns: float
    """Mean of G."""
    true_value: float
    """Mean of V."""


def calibration(states: States, values: np.ndarray, bins: int = 10) -> list[CalibrationRow]:
    """Returns states in bins of about the same weight by their values, lowest first; equal values stay together.

    Args:
        states: N states.
        values: float [N].
        bins: Most rows.

    Raises:
        ValueError: `values` has another shape.
    """
    _check(states, values)
    different, index = np.unique(values, return_inverse=True)
    mass = np.bincount(index, states.weights, minlength=len(different))
    middle = (np.cumsum(mass) - 0.5 * mass) / mass.sum() if len(different) else mass
    row = np.minimum((middle * bins).astype(np.int64), bins - 1)[index]
    found = []
    for number in np.unique(row):
        inside = row == number
        weights = states.weights[inside]
        means = [
            float(np.average(array[inside], weights=weights)) for array in (values, states.returns, states.true_values)
        ]
        found.append(CalibrationRow(float(weights.sum() / states.weights.sum()), *means))
    return found


def _agreement(
    values: np.ndarray, first: np.ndarray, second: np.ndarray, weights: np.ndarray, clusters: np.ndarray
) -> Agreement:
    mean = 0.5 * (first + second)
    columns = [values, values * values, mean, values * mean, first, second, first * second]
    sums = cluster_sums(columns, weights, clusters)

    def correlation(s: np.ndarray) -> np.ndarray:
        true = _covariance(s, 5, 6, 7)
        known = np.sqrt(np.where(true > 0, true, np.nan) * _variance(s, 1, 2))
        return _covariance(s, 1, 3, 4) / known

    def slope(s: np.ndarray) -> np.ndarray:
        return _covariance(s, 1, 3, 4) / _variance(s, 1, 2)

    return Agreement(estimate(sums, correlation), estimate(sums, slope))


def _one_minus_ratio(
    states: States, error: tuple[np.ndarray, np.ndarray], whole: tuple[np.ndarray, np.ndarray]
) -> Estimate:
    """1 - Cov(error) / Cov(whole)."""
    columns = [*error, error[0] * error[1], *whole, whole[0] * whole[1]]
    sums = cluster_sums(columns, states.weights, states.clusters)

    def statistic(s: np.ndarray) -> np.ndarray:
        variance = _covariance(s, 4, 5, 6)
        return 1.0 - _covariance(s, 1, 2, 3) / np.where(variance > _ROUNDING, variance, np.nan)

    return estimate(sums, statistic)


def _covariance(sums: np.ndarray, one: int, other: int, product: int) -> np.ndarray:
    """Weighted covariance from sums [..., M], given the columns of both and of their product; column 0 has the weights."""
    weight = sums[..., 0]
    return sums[..., product] / weight - sums[..., one] * sums[..., other] / weight**2


def _variance(sums: np.ndarray, column: int, square: int) -> np.ndarray:
    """Weighted variance; NaN where nothing varies."""
    variance = _covariance(sums, column, column, square)
    return np.where(variance > _ROUNDING, variance, np.nan)


def _check(states: States, values: np.ndarray) -> None:
    if values.shape != states.returns.shape:
        raise ValueError(f"there are {len(states)} states, and values of shape {values.shape}")
