"""Hindsight: windows that are trained once more when their episode has ended.

EGAE is linear in the boundary value. A window of l tokens was trained with the boundary value B. When the episode has ended,
the return G_l that followed is known. The correction to the window's advantages is EGAE with zero rewards, zero values and
the boundary value

    residual = G_l - B

Without it the reward at the end reaches earlier windows through the critic alone. The tokens are then older than
`max_staleness`, so the loss weights them by truncated importance weights (`maths.surrogate.truncated_policy_gradient`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from tppo_rl.core.fragments import Fragment, owned, return_after


class HindsightBuffer:
    """Trained windows of episodes that have not ended, and windows that are due for their second training."""

    def __init__(self, gamma: float, due: Iterable[Fragment] = ()) -> None:
        """Begins with the windows that are already due.

        Args:
            gamma: Discount of each sampled token.
            due: `due` of a buffer that was saved.
        """
        self._gamma = gamma
        self._trained: defaultdict[int, dict[int, tuple[Fragment, float]]] = defaultdict(dict)
        self.due: list[Fragment] = list(due)
        """Windows to train once more, with `hindsight_residual` set."""

    def add(self, fragment: Fragment, boundary_value: float) -> None:
        """Keeps an unfinished fragment that was trained with `boundary_value` until its episode ends."""
        # An episode whose env-runner was lost is generated anew under the same id: its new windows replace the old ones.
        self._trained[fragment.episode_id][fragment.window_index] = (owned(fragment), boundary_value)

    def close(self, finished: Fragment) -> None:
        """Makes the earlier windows of an episode due, given its last fragment."""
        earlier = self._trained.pop(finished.episode_id, {})
        for fragment, boundary_value in earlier.values():
            end = fragment.num_positions
            sequence = np.concatenate([fragment.context, fragment.tokens])
            if np.array_equal(finished.context[:end], sequence):
                residual = return_after(finished, end, self._gamma) - boundary_value
                self.due.append(replace(fragment, hindsight_residual=residual))

    def forget(self, episode_id: int) -> None:
        """Drops the windows of an episode whose return is not known."""
        self._trained.pop(episode_id, None)

    def drain(self) -> list[Fragment]:
        """Returns the windows that are due, and forgets them."""
        due, self.due = self.due, []
        return due
