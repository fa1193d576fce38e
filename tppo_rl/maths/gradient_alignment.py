"""Cosine and noise of gradients that are known from groups of samples alone.

Groups are independent draws: a product of two gradients is unbiased where it is taken across groups, and too large within
one. Each group's gradient is given for two halves, which draw other continuations from the same states:

    <e, f>      =  mean over k != l of  m_ek . m_fl            m_ek: mean of the halves of group k, estimator e
    cosine      =  <e, t> / sqrt(<e, e> <t, t>)                t: an estimator without bias for the true gradient
    states'     =  mean over k of  n_k (g_ek1 . g_ek2 - <e, e>)             variance among states
    draws'      =  mean over k of  n_k c (|g_ekh|^2 - g_ek1 . g_ek2)        variance among continuations of a state
    tokens per signal  =  (states' + draws') / <e, e>

n_k is the number of states of the group, c that of continuations in a half. A batch of that many tokens, each from another
state, has as much noise as signal. Errors are those of the jackknife over groups.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

from tppo_rl.maths.cluster_bootstrap import CONFIDENCE, Estimate

_LEAST_GROUPS = 3
_LEAST_ERRORS = 2.0


class Alignment(NamedTuple):
    """How one estimator's gradient lies to another's."""

    cosine: Estimate
    """NaN where noise hides a gradient: its squared length is not two standard errors above 0."""
    tokens_per_signal: Estimate
    """Of the first estimator; NaN as before."""


def alignment(gradients: np.ndarray, truth: np.ndarray, states: np.ndarray, draws: float) -> Alignment:
    """Returns cosine and noise by the module's equations.

    Args:
        gradients: float [K, 2, P], of K groups, both halves, P coordinates: mean over the tokens of the group.
        truth: Same shape, of an estimator without bias on the same samples.
        states: float [K], n_k.
        draws: c.

    Raises:
        ValueError: shapes that do not fit together, or fewer than two groups.
    """
    if gradients.shape != truth.shape or gradients.ndim != 3 or gradients.shape[1] != 2:
        raise ValueError(f"gradients must be [K, 2, P] twice, got {gradients.shape} and {truth.shape}")
    number = len(gradients)
    if states.shape != (number,) or number < 2:
        raise ValueError(f"states must be [K] with two groups or more, got {states.shape} for {number} groups")
    own, true = gradients.mean(1, dtype=np.float64), truth.mean(1, dtype=np.float64)
    products = [one @ other.T for one, other in ((own, true), (own, own), (true, true))]
    halves = gradients.astype(np.float64)
    same, other = (halves**2).sum(2).mean(1), (halves[:, 0] * halves[:, 1]).sum(1)

    def length(product: np.ndarray) -> Callable[[np.ndarray], float]:
        return lambda kept: _across(product, kept)

    seen = [_is_seen(_jackknife(length(product), number)) for product in products[1:]]

    def cosine(kept: np.ndarray) -> float:
        joint, first, second = (_across(product, kept) for product in products)
        return joint / np.sqrt(first * second) if min(first, second) > 0 else np.nan

    def tokens_per_signal(kept: np.ndarray) -> float:
        signal = _across(products[1], kept)
        among_states = np.mean(states[kept] * (other[kept] - signal))
        among_draws = np.mean(states[kept] * draws * (same[kept] - other[kept]))
        return float(among_states + among_draws) / signal if signal > 0 else np.nan

    return Alignment(
        _jackknife(cosine, number) if all(seen) else _hidden(number),
        _jackknife(tokens_per_signal, number) if seen[0] else _hidden(number),
    )


def _is_seen(squared_length: Estimate) -> bool:
    if np.isnan(squared_length.error):
        return squared_length.value > 0
    return squared_length.value > _LEAST_ERRORS * squared_length.error


def _hidden(number: int) -> Estimate:
    return Estimate(np.nan, np.nan, np.nan, np.nan, number)


def _across(product: np.ndarray, kept: np.ndarray) -> float:
    """Mean of the entries off the diagonal, of some groups."""
    part = product[np.ix_(kept, kept)]
    number = len(kept)
    return float((part.sum() - np.trace(part)) / (number * (number - 1)))


def _jackknife(statistic: Callable[[np.ndarray], float], number: int) -> Estimate:
    groups = np.arange(number)
    value = statistic(groups)
    if number < _LEAST_GROUPS or not np.isfinite(value):
        return Estimate(value, np.nan, np.nan, np.nan, number)
    without = np.array([statistic(np.delete(groups, group)) for group in groups])
    if not np.isfinite(without).all():
        return Estimate(value, np.nan, np.nan, np.nan, number)
    error = float(np.sqrt((number - 1) / number * ((without - without.mean()) ** 2).sum()))
    reach = float(stats.t.ppf((1 + CONFIDENCE) / 2, number - 1)) * error
    return Estimate(value, error, value - reach, value + reach, number)
