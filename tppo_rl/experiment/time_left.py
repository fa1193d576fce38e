"""How long a run or a trial will still take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from tppo_rl.core.result_keys import lookup

_CLOCKS = ("time_total_s", "time_since_restore")
"""Keys of results that are seconds themselves."""


def done_fraction(result: Mapping[str, Any], stop: Mapping[str, float]) -> float:
    """How much of a run is done by the nearest of its limits, 0 to 1."""
    fractions = [float(lookup(result, key) or 0) / limit for key, limit in stop.items() if limit]
    return min(1.0, max(fractions, default=0.0))


def time_left(elapsed_s: float, gained: float, missing: float) -> str:
    """Minutes and seconds that the missing part takes if it goes on as the gained part did; `?` where nothing was gained."""
    if gained <= 0:
        return "?"
    return minutes(elapsed_s * missing / gained)


def minutes(seconds: float) -> str:
    """Seconds as hours, minutes and seconds."""
    whole = int(seconds)
    hours, rest = divmod(whole, 3600)
    start = f"{hours}:{rest // 60:02d}" if hours else f"{rest // 60}"
    return f"{start}:{rest % 60:02d}"


class Pace:
    """Time left of a run, from its limits, its updates and its evaluations so far.

    Sampling and training go on as they did since the run's first update began; every evaluation that is still to come, the last one
    after training included, takes as long as the longest so far.

    Args:
        stop: Limits by result key; the one that will be reached first counts.
        every: Iterations between evaluations; None: evaluations are not foreseen.
        clock: Seconds.
    """

    def __init__(
        self, stop: Mapping[str, float], every: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stop = dict(stop)
        self._every = every
        self._clock = clock
        self._before: dict[str, float] = {}
        self._began: float | None = None
        self._evaluating_s = 0.0
        self._longest: dict[str, float] = {}

    def resume(self, result: Mapping[str, Any]) -> None:
        """Takes over where the run stood when it was saved, from its last result."""
        self._before = {key: float(lookup(result, key) or 0) for key in (*self._stop, "training_iteration")}

    def begin(self) -> None:
        """The first update begins; the start and the first evaluation say nothing of how long an update takes."""
        if self._began is None:
            self._began = self._clock()

    def evaluated(self, words: str, seconds: float) -> None:
        """A stage of an evaluation took so long; every evaluation has one of each name."""
        self._longest[words] = max(self._longest.get(words, 0.0), seconds)
        if self._began is not None:
            self._evaluating_s += seconds

    def left(self, result: Mapping[str, Any]) -> float | None:
        """Seconds left after a result; None while no limit has come nearer."""
        if self._began is None:
            return None
        elapsed = self._clock() - self._began - self._evaluating_s
        evaluation_s = sum(self._longest.values())
        times = []
        for key, limit in self._stop.items():
            now = float(lookup(result, key) or 0)
            gained, missing = now - self._before.get(key, 0.0), max(0.0, limit - now)
            if key in _CLOCKS:
                # It has the start and the evaluations in it, but the last one.
                times.append(missing + evaluation_s)
            elif gained > 0:
                training_s = elapsed * missing / gained
                times.append(training_s + self._evaluations_left(result, elapsed, training_s) * evaluation_s)
        return min(times, default=None)

    def _evaluations_left(self, result: Mapping[str, Any], elapsed: float, training_s: float) -> int:
        iteration = int(result["training_iteration"])
        made = iteration - self._before.get("training_iteration", 0.0)
        if self._every is None or made <= 0:
            return 1
        last = iteration + round(training_s * made / elapsed) if elapsed > 0 else iteration
        # The last result brings an evaluation of its own, or else one is made after it.
        return last // self._every - iteration // self._every + (last % self._every > 0)
