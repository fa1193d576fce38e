"""Spans of time: what a part of a run was doing, from when, for how long."""

from __future__ import annotations

from typing import NamedTuple


class Span(NamedTuple):
    """One bar of a timeline."""

    track: str
    """Who did it, such as "env-runner 1"; one row of the timeline."""
    name: str
    """What was done."""
    start: float
    """Seconds since the epoch, by the clock of the machine that did it."""
    seconds: float
