"""Seconds of a core: what `tppo-rl bench plan` measures in.

A plan speaks of devices that nobody else uses. With one thread that is the processor time of this process, whatever else
runs on the machine; with more, and so on an idle machine only, it is the wall clock.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass
class Timing:
    """Of a block of code that has ended."""

    seconds: float = 0.0
    wall: float = 0.0
    """By the wall clock."""


class Clock:
    """Measures blocks of code.

    Args:
        threads: Torch threads of what is measured.
    """

    def __init__(self, threads: int) -> None:
        self._now = time.process_time if threads == 1 else time.perf_counter
        self._sum = Timing()

    @contextmanager
    def timing(self) -> Iterator[Timing]:
        """Gives the block's timing, which is filled when it ends."""
        timing = Timing(self._now(), time.perf_counter())
        yield timing
        timing.seconds = self._now() - timing.seconds
        timing.wall = time.perf_counter() - timing.wall
        self._sum.seconds += timing.seconds
        self._sum.wall += timing.wall

    @property
    def share(self) -> float:
        """Seconds of all blocks for each second of the wall clock; well below 1, others used the machine too."""
        return self._sum.seconds / self._sum.wall
