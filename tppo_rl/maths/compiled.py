"""The recurrence of `advantages` in machine code for arrays on the CPU: one pass over the tokens, none over padding.

It makes the same floating-point operations in the same order as the tensor code, so the two agree to the last bit. Rows
are given by their first index, so it does not matter whether they are padded or stand back to back.
"""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(cache=True, nogil=True, error_model="numpy")
def egae_rows(  # pragma: no cover (runs compiled)
    rewards: np.ndarray,
    values: np.ndarray,
    boundary_values: np.ndarray,
    starts: np.ndarray,
    lengths: np.ndarray,
    gamma: np.ndarray,
    decays: np.ndarray,
    lambdas: np.ndarray,
    tail_corrected: np.ndarray,
    advantages: np.ndarray,
) -> None:
    """Fills `advantages` with extended GAE; see `tppo_rl.maths.advantages.egae` for the equation.

    All floating-point arrays share one dtype, so that no operation is made in another.

    Args:
        rewards: [N], r_t of all rows; entries between rows are not read.
        values: [N], V(s_t) of all rows; entries between rows are not read.
        boundary_values: [B], V(s_l) of each row.
        starts: int64 [B], index of the first token of each row.
        lengths: int64 [B], number of tokens in each row, at least 1.
        gamma: [1], discount.
        decays: [B], gamma * lambda.
        lambdas: [B], lambda.
        tail_corrected: bool [B], whether each row gets the tail correction.
        advantages: [N], the result; entries between rows are not written.
    """
    one = np.ones_like(gamma)[0]
    zero = one - one
    for row in range(len(lengths)):
        running = zero
        following = boundary_values[row]
        decay = decays[row]
        first = starts[row]
        # Each kind of row has a loop of its own: a branch at every token costs a quarter of the time.
        if tail_corrected[row]:
            weight = zero
            for step in range(first + lengths[row] - 1, first - 1, -1):
                value = values[step]
                delta = rewards[step] + gamma[0] * following - value
                weight = one + lambdas[row] * weight
                running = weight * delta + decay * running
                advantages[step] = running / weight
                following = value
        else:
            for step in range(first + lengths[row] - 1, first - 1, -1):
                value = values[step]
                delta = rewards[step] + gamma[0] * following - value
                running = delta + decay * running
                advantages[step] = running
                following = value
