"""Learning rates that change with the tokens trained: RLlib's schedules, straight lines between given points."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

LearningRate = float | Sequence[Sequence[float]]
"""A constant, or [[tokens, rate], …]: tokens rise from 0, straight lines connect the points, and the last rate stays."""


LARGEST_RATE = 1
"""A step of Adam moves each weight by about the rate, and weights are smaller than 1."""


def rate_at(rate: LearningRate, num_tokens: int) -> float:
    """Returns the learning rate of the update that follows `num_tokens` trained tokens (of all learners)."""
    if isinstance(rate, int | float):
        return float(rate)
    tokens, rates = zip(*rate, strict=True)
    return float(np.interp(num_tokens, tokens, rates))


def largest_rate(rate: LearningRate) -> float:
    """Returns the largest learning rate of a run."""
    return float(rate) if isinstance(rate, int | float) else max(float(one) for _, one in rate)


def fault(rate: LearningRate) -> str | None:
    """Returns the end of an error message about a bad learning rate; None for a good one."""
    if isinstance(rate, int | float):
        return None if 0 <= rate <= LARGEST_RATE else f"give a number, at least 0 and at most {LARGEST_RATE}"
    if len(rate) < 2 or any(len(point) != 2 for point in rate):
        return "a schedule is two or more pairs [trained tokens, rate], such as [[0, 2e-4], [100000, 1e-5]]"
    tokens, rates = zip(*rate, strict=True)
    if tokens[0] != 0:
        return f"a schedule begins at 0 tokens, not at {tokens[0]:g}"
    for earlier, later in pairwise(tokens):
        if later <= earlier:
            return f"the tokens of a schedule rise from pair to pair, but {later:g} follows {earlier:g}"
    for one in rates:
        if not 0 <= one <= LARGEST_RATE:
            return f"the rate {one:g} is {f'above {LARGEST_RATE}' if one > LARGEST_RATE else 'below 0'}"
    return None
