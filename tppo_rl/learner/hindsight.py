"""Hindsight: windows that are trained once more when their episode has ended.

EGAE is linear in the boundary value. A window of l tokens was trained with the boundary value B. When the episode has ended,
the return G_l that followed is known. The correction to the window's advantages is EGAE with zero rewards, zero values and
the boundary value

    residual = G_l - B

Where the first training left a part of the advantages out (`unfinished_advantage_scale`), that part is added: both trainings
together are one on the advantages of the true return.

Without it the reward at the end reaches earlier windows through the critic alone. The tokens are then older than
`max_staleness`, so the loss weights them by truncated importance weights (`maths.surrogate.truncated_policy_gradient`).

The windows of an episode become due together. They follow each other, so the learner lays them out as one sequence
(`joined`): each token is then processed once, and not once more for every window that it is the context of.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from tppo_rl.core.fragments import Fragment, owned, return_after


class DueWindow(NamedTuple):
    """A window of a row that is trained in hindsight."""

    length: int
    """Its sampled tokens."""
    residual: float
    left_out: np.ndarray
    """float32 [length]: what its first advantages left out."""


class Row(NamedTuple):
    """One sequence of a batch: a fragment, or windows in hindsight that follow each other."""

    fragment: Fragment
    due: tuple[DueWindow, ...]
    """Windows of `fragment`, all of it; empty where it is trained for the first time."""


def joined(fragments: Sequence[Fragment]) -> list[Row]:
    """Returns the rows of a batch: windows in hindsight that follow each other are one row, in the place of the first of them."""
    ends: dict[tuple[int, int], int] = {}
    # By window index, so that a window finds the row that it goes on with.
    order = sorted(range(len(fragments)), key=lambda index: (fragments[index].window_index, index))
    places: dict[int, Row] = {}
    for index in order:
        fragment = fragments[index]
        if fragment.hindsight_residual is None:
            places[index] = Row(fragment, ())
            continue
        nothing = np.zeros(len(fragment), np.float32)
        left_out = fragment.left_out_advantages if len(fragment.left_out_advantages) else nothing
        due = DueWindow(len(fragment), fragment.hindsight_residual, left_out)
        before = ends.pop((fragment.episode_id, len(fragment.context)), None)
        if before is not None and _goes_on(places[before].fragment, fragment):
            row = places[before]
            places[before] = Row(_with(row.fragment, fragment), (*row.due, due))
        else:
            before = index
            places[index] = Row(fragment, (due,))
        ends[fragment.episode_id, fragment.num_positions] = before
    return [places[index] for index in sorted(places)]


def _goes_on(first: Fragment, second: Fragment) -> bool:
    return np.array_equal(second.context, np.concatenate([first.context, first.tokens]))


def _with(first: Fragment, second: Fragment) -> Fragment:
    """Returns both windows as one."""
    names = ("tokens", "sampled", "behavior_log_probs", "versions", "rewards")
    return replace(first, **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names})


class _TrainedWindow(NamedTuple):
    window: Fragment
    """Without its context, which the episode's last window has."""
    start: int
    """Length of its context."""
    checksum: int
    """Of all tokens up to its end."""
    boundary_value: float


class HindsightBuffer:
    """Trained windows of episodes that have not ended, and windows that are due for their second training.

    It holds 17 bytes for each trained token of an open episode, and 4 more where its advantage was left out in part.
    """

    def __init__(self, gamma: float, due: Iterable[Fragment] = ()) -> None:
        """Begins with the windows that are already due.

        Args:
            gamma: Discount of each sampled token.
            due: `due` of a buffer that was saved.
        """
        self._gamma = gamma
        self._trained: defaultdict[int, dict[int, _TrainedWindow]] = defaultdict(dict)
        self.due: list[Fragment] = list(due)
        """Windows to train once more, with `hindsight_residual` set."""

    @property
    def num_bytes(self) -> int:
        """Size of the windows that wait for the end of their episode."""
        arrays = ("tokens", "sampled", "behavior_log_probs", "versions", "rewards", "left_out_advantages")
        windows = (kept.window for of_episode in self._trained.values() for kept in of_episode.values())
        return sum(getattr(window, name).nbytes for window in windows for name in arrays)

    def add(self, fragment: Fragment, boundary_value: float, left_out: np.ndarray | None = None) -> None:
        """Keeps an unfinished fragment that was trained until its episode ends.

        Args:
            fragment: The window.
            boundary_value: With which it was trained.
            left_out: What was left out of its advantages, float32 [number of sampled tokens]; None: nothing.
        """
        # An episode whose env-runner was lost is generated anew under the same id: its new windows replace the old ones.
        arrays = {
            name: getattr(fragment, name)[:0] for name in ("context", "context_sampled", "context_rewards", "answer")
        }
        if left_out is not None:
            arrays["left_out_advantages"] = left_out
        self._trained[fragment.episode_id][fragment.window_index] = _TrainedWindow(
            owned(replace(fragment, **arrays)),
            len(fragment.context),
            checksum(fragment, fragment.num_positions),
            boundary_value,
        )

    def close(self, finished: Fragment) -> None:
        """Makes the earlier windows of an episode due, given its last fragment."""
        for window, start, seen, boundary_value in self._trained.pop(finished.episode_id, {}).values():
            end = start + len(window.tokens)
            # Windows with another checksum are of an attempt that was lost with its env-runner.
            if checksum(finished, end) != seen:
                continue
            context = {
                name: getattr(finished, name)[:start] for name in ("context", "context_sampled", "context_rewards")
            }
            residual = return_after(finished, end, self._gamma) - boundary_value
            self.due.append(owned(replace(window, **context, hindsight_residual=residual)))

    def forget(self, episode_id: int) -> None:
        """Drops the windows of an episode whose return is not known."""
        self._trained.pop(episode_id, None)

    def drain(self) -> list[Fragment]:
        """Returns the windows that are due, and forgets them."""
        due, self.due = self.due, []
        return due


def checksum(fragment: Fragment, position: int) -> int:
    """Returns a checksum of the first `position` tokens of a fragment's episode."""
    return zlib.crc32(np.concatenate([fragment.context, fragment.tokens])[:position].tobytes())
