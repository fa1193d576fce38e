"""Costs out of measurements.

Coefficients are at least 0 and have the least sum of squared relative errors, so that short measurements count as much as
long ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tppo_rl.plan.costs import AffineEngineCost, PassCost
from tppo_rl.plan.windows import PassWork

_REWEIGHTINGS = 4


def fit_engine(
    running: Sequence[float],
    context_tokens: Sequence[float],
    prompt_tokens: Sequence[float],
    seconds: Sequence[float],
    *,
    weight_update: float = 0.0,
) -> AffineEngineCost:
    """Returns the curve of measured steps.

    Args:
        running: Sequences that got a token, mean over the steps of each measurement; like the next two.
        context_tokens: Tokens of all of them.
        prompt_tokens: Tokens that were prefilled.
        seconds: Of one step, the mean of each measurement.
        weight_update: Measured apart, seconds.
    """
    features = np.column_stack([np.ones(len(seconds)), running, context_tokens, prompt_tokens])
    base, per_sequence, per_context_token, per_prompt_token = nonnegative_fit(features, seconds)
    return AffineEngineCost(base, per_sequence, per_context_token, per_prompt_token, weight_update)


def fit_pass(works: Sequence[PassWork], seconds: Sequence[float]) -> PassCost:
    """Returns the cost of a pass that was measured on some batches.

    Args:
        works: Of one pass over each batch.
        seconds: That it took.
    """
    features = np.array([[1.0, work.sequences, work.positions, work.pairs] for work in works])
    return PassCost(*nonnegative_fit(features, seconds))


def nonnegative_fit(features: np.ndarray, seconds: Sequence[float]) -> list[float]:
    """Returns coefficients >= 0 with the least sum of squared relative errors.

    Errors are relative to what is fitted, for relative to what was measured the slow ones of repeated measurements would
    count less than the fast ones. Columns are brought to one size first: squared lengths are a million times as large as
    numbers of sequences.
    """
    from scipy.optimize import nnls

    measured = np.asarray(seconds, np.float64)
    sizes = np.abs(features).max(axis=0)
    sizes[sizes == 0] = 1.0
    coefficients, scale = np.zeros(features.shape[1]), measured
    for _ in range(_REWEIGHTINGS):
        coefficients, _residual = nnls(features / sizes / scale[:, None], measured / scale)
        scale = np.maximum(features / sizes @ coefficients, 1e-3 * measured)
    return [float(value) for value in coefficients / sizes]
