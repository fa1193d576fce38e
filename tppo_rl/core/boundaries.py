"""What the critic said at the end of an unfinished fragment, and what followed once the episode has ended."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Boundary:
    """What the critic said at the end of an unfinished fragment when it was trained."""

    held: float
    """V(s_(l-1)), which EGAE's `hold` puts in the place of V(s_l)."""
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
    """Discounted rewards that followed the window."""
    position: int
    """Tokens between the prompt and the window's end, the environment's included."""
