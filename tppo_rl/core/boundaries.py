"""Boundaries: the critic's values at the end of an unfinished fragment, and the return that followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np


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
    episode_id: int


class WindowDifferences(NamedTuple):
    """The critic's values around windows whose episodes have ended, float [n] each."""

    before: np.ndarray
    """V of the state before the window."""
    after: np.ndarray
    """V of the state after it."""
    returns: np.ndarray
    """The return that followed the window."""
    num_episodes: int
    """Episodes that the windows are of."""


def window_differences(boundaries: Sequence[ClosedBoundary]) -> WindowDifferences:
    """Returns the differences over the windows between boundaries; those of an episode follow each other."""
    pairs = [(a, b) for a, b in pairwise(boundaries) if _follows(a, b)]
    return WindowDifferences(
        np.array([first.values.bootstrap for first, _ in pairs]),
        np.array([second.values.bootstrap for _, second in pairs]),
        np.array([second.return_after for _, second in pairs]),
        len({second.episode_id for _, second in pairs}),
    )


def _follows(first: ClosedBoundary, second: ClosedBoundary) -> bool:
    return first.episode_id == second.episode_id and second.window_index == first.window_index + 1
