"""Times of short calls, by which a library or number format is chosen."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_TIMES = 9


def least_seconds(call: Callable[[], Any]) -> float:
    """Returns the least of some measurements of a call, after one that is not measured: other processes can only make it longer."""
    call()
    least = float("inf")
    for _ in range(_TIMES):
        start = time.perf_counter()
        call()
        least = min(least, time.perf_counter() - start)
    return least
