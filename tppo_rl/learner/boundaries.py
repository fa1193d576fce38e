"""What became of the critic's values at window ends: known when the episode has ended.

update  ──report──▶  note V(s_l), V(s_(l-1)) of every unfinished fragment
episode ends  ─────▶  its boundaries beside the returns that followed them: metrics, hindsight
"""

from __future__ import annotations

import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tppo_rl.config.options import Options
from tppo_rl.core.boundaries import Boundary, ClosedBoundary
from tppo_rl.core.fragments import Fragment, return_after
from tppo_rl.learner.hindsight import HindsightBuffer


class _OpenBoundary(NamedTuple):
    position: int
    """Tokens up to the boundary, the prompt included."""
    checksum: int
    """Of these tokens."""
    values: Boundary


class BoundaryTracker:
    """Keeps the values at window ends until the episodes end, and the windows that hindsight trains once more.

    Args:
        options: Of the run.
        due: Windows that were due for their second training when a checkpoint was saved.
    """

    def __init__(self, options: Options, due: Iterable[Fragment] = ()) -> None:
        self._gamma = options.advantages.gamma
        self._held = options.advantages.boundary_value == "hold"
        self._has_hindsight = options.advantages.hindsight
        self._frozen_updates = options.critic.critic_warmup_updates
        # Values that have learned what KL takes off say nothing of returns without it.
        self._measures = not options.policy_loss.has_kl_in_rewards
        self._hindsight = HindsightBuffer(self._gamma, due)
        self._open: defaultdict[int, dict[int, _OpenBoundary]] = defaultdict(dict)

    @property
    def waiting(self) -> Sequence[Fragment]:
        """Windows that are due for their second training."""
        return self._hindsight.due

    def due(self) -> list[Fragment]:
        """Returns what is due and forgets it."""
        return self._hindsight.drain()

    def after_update(self, fragments: Sequence[Fragment], reports: pa.Table, version: int) -> list[ClosedBoundary]:
        """Notes the boundaries of an update and returns those whose episodes it has ended.

        Args:
            fragments: What was trained, but for windows in hindsight.
            reports: Of all learners (`tppo_rl.learner.update.FRAGMENT_REPORT_SCHEMA`).
            version: Policy version before the update.
        """
        rows = {(row["episode_id"], row["window_index"]): row for row in reports.to_pylist()}
        times = Counter((fragment.episode_id, fragment.window_index) for fragment in fragments)
        closed: list[ClosedBoundary] = []
        for fragment in sorted(fragments, key=lambda fragment: fragment.window_index):
            if times[fragment.episode_id, fragment.window_index] > 1:
                # Sampled again after the loss of an env-runner: which row of the report is whose is not known.
                continue
            if fragment.finished:
                closed += self._close(fragment)
                self._hindsight.close(fragment)
            else:
                self._note(fragment, rows[fragment.episode_id, fragment.window_index], version)
        return closed if self._measures else []

    def _note(self, fragment: Fragment, row: Mapping[str, Any], version: int) -> None:
        values = Boundary(row["held_value"], row["boundary_value"], row["mean_value"])
        end = fragment.num_positions
        # By window: those of an episode that is generated anew after the loss of an env-runner replace the old ones.
        self._open[fragment.episode_id][fragment.window_index] = _OpenBoundary(end, _checksum(fragment, end), values)
        # While the policy is frozen a window is not trained, and there is nothing to add to.
        if self._has_hindsight and version >= self._frozen_updates:
            self._hindsight.add(fragment, values.held if self._held else values.bootstrap)

    def _close(self, finished: Fragment) -> list[ClosedBoundary]:
        """The earlier boundaries of an episode beside the returns that followed them, given its last fragment."""
        return [
            ClosedBoundary(
                window_index,
                boundary.values,
                return_after(finished, boundary.position, self._gamma),
                boundary.position - finished.prompt_length,
            )
            for window_index, boundary in self._open.pop(finished.episode_id, {}).items()
            # Others are of an attempt that was lost with its env-runner.
            if _checksum(finished, boundary.position) == boundary.checksum
        ]


def _checksum(fragment: Fragment, position: int) -> int:
    """Checksum of the first `position` tokens of a fragment's episode."""
    sequence = np.concatenate([fragment.context, fragment.tokens])[:position]
    return zlib.crc32(sequence.tobytes())
