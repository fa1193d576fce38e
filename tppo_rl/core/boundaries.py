"""Boundaries: the critic's values at the end of an unfinished fragment, and the return that followed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Boundary:
    """The critic's values at the end of an unfinished fragment, taken when the fragment was trained."""

    held: float
    """V(s_(l-1)), which EGAE's `hold` uses as V(s_l)."""
    bootstrap: float
    """V(s_l)."""
    window_mean: float
    """Mean value over the fragment's sampled tokens."""


@dataclass(frozen=True)
class ClosedBoundary:
    """A boundary whose episode has ended."""

    window_index: int
    values: Boundary
    return_after: float
    """Discounted return that followed the window."""
    position: int
    """Tokens between the prompt and the window's end, environment text included."""
