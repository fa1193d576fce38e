"""The recurrence of `advantages` in machine code for arrays on the CPU: one pass over the tokens, none over padding.

It makes the same floating-point operations in the same order as the tensor code, so the two agree to the last bit. A
row costs its length, not the longest row's: with long-tailed responses most of a padded array is padding.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, error_model="numpy")
def extended_gae_rows(  # pragma: no cover (runs compiled)
    rewards: np.ndarray,
    values: np.ndarray,
    boundary_values: np.ndarray,
    lengths: np.ndarray,
    gamma: np.ndarray,
    decays: np.ndarray,
    lambdas: np.ndarray,
    tail_corrected: np.ndarray,
    advantages: np.ndarray,
) -> None:
    """Fills `advantages` with extended GAE; see `tppo_rl.maths.advantages.extended_gae` for the equation.

    All floating-point arrays share one dtype, so that no operation is made in another.

    Args:
        rewards: [B, T]; padding is not read.
        values: [B, T]; padding is not read.
        boundary_values: [B].
        lengths: int64 [B], between 1 and T.
        gamma: [1].
        decays: [B], gamma * lambda.
        lambdas: [B].
        tail_corrected: bool [B].
        advantages: [B, T], zeros; padding is not written.
    """
    one = np.ones_like(gamma)[0]
    zero = one - one
    for row in range(len(lengths)):
        running = zero
        following = boundary_values[row]
        decay = decays[row]
        # Each kind of row has a loop of its own: a branch at every token costs a quarter of the time.
        if tail_corrected[row]:
            weight = zero
            for step in range(lengths[row] - 1, -1, -1):
                value = values[row, step]
                delta = rewards[row, step] + gamma[0] * following - value
                weight = one + lambdas[row] * weight
                running = weight * delta + decay * running
                advantages[row, step] = running / weight
                following = value
        else:
            for step in range(lengths[row] - 1, -1, -1):
                value = values[row, step]
                delta = rewards[row, step] + gamma[0] * following - value
                running = delta + decay * running
                advantages[row, step] = running
                following = value
