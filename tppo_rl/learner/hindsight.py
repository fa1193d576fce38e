"""Hindsight: windows that are trained once more when their episode has ended.

EGAE is linear in the value that stands for what follows a window. A window of l tokens was trained with the boundary value
B; when the episode has ended, the return G_l that really followed is known, and the advantages that the window should have
had in addition are those of EGAE with no rewards, no values and the boundary value

    residual = G_l - B

Until then the verified reward has reached earlier windows through the critic alone. The tokens are by then older than
`max_staleness`, so the loss weighs them by truncated importance weights (`maths.surrogate.truncated_policy_gradient`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from tppo_rl.core.fragments import Fragment, owned, return_after


class HindsightBuffer:
    """Trained windows of episodes that have not ended, and those that are due for their second training."""

    def __init__(self, gamma: float, due: Iterable[Fragment] = ()) -> None:
        """Begins with nothing but what is already due.

        Args:
            gamma: Discount of each sampled token.
            due: As from `due` of a buffer that was saved.
        """
        self._gamma = gamma
        self._trained: defaultdict[int, dict[int, tuple[Fragment, float]]] = defaultdict(dict)
        self.due: list[Fragment] = list(due)
        """Windows to train once more, with `hindsight_residual` set."""

    def add(self, fragment: Fragment, boundary_value: float) -> None:
        """Keeps an unfinished fragment that was trained with `boundary_value` until its episode ends."""
        # An episode whose env-runner was lost is generated anew under the same number: its new windows take the place.
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

    def drain(self) -> list[Fragment]:
        """Returns what is due."""
        due, self.due = self.due, []
        return due
