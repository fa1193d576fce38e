"""When a learning curve reached an accuracy. Between two evaluations accuracy is taken as linear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def reached_after(accuracy: Sequence[float] | np.ndarray, spent: Sequence[float] | np.ndarray, target: float) -> float:
    """Returns what was spent when accuracy first reached `target`, nan where it never did.

    Args:
        accuracy: [N], at evaluations.
        spent: [N], rising: seconds or tokens.
        target: Share.
    """
    reached = np.flatnonzero(np.asarray(accuracy) >= target)
    if len(reached) == 0:
        return float("nan")
    after = int(reached[0])
    if after == 0:
        return float(spent[0])
    between = [after - 1, after]
    return float(np.interp(target, np.asarray(accuracy)[between], np.asarray(spent)[between]))
