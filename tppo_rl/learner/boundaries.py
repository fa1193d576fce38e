"""Boundaries: the critic's values at window ends, kept until the episode ends and their returns are known.

update  ──report──▶  note V(s_l), V(s_(l-1)) of every unfinished fragment
episode ends  ─────▶  its boundaries and the returns that followed them: metrics, hindsight
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tppo_rl.config.options import Options
from tppo_rl.config.sections.advantages import AUTO
from tppo_rl.core.boundaries import Boundary, ClosedBoundary, window_differences
from tppo_rl.core.fragments import Fragment, return_after
from tppo_rl.core.update_report import UpdateSettings
from tppo_rl.learner.critic_warmup import ERRORS, CriticWarmup
from tppo_rl.learner.hindsight import HindsightBuffer, checksum
from tppo_rl.maths.running_slope import RunningSlope


class _OpenBoundary(NamedTuple):
    position: int
    """Number of tokens up to the boundary, prompt included."""
    checksum: int
    """Checksum of these tokens."""
    values: Boundary


class BoundaryTracker:
    """Keeps the values at window ends until the episodes end, and the windows that hindsight trains once more.

    Args:
        options: Options of the run.
        due: Windows that were due for their second training when a checkpoint was saved.
        known: What was known of the critic then (`known`); None: nothing.
    """

    def __init__(self, options: Options, due: Iterable[Fragment] = (), known: Mapping[str, Any] | None = None) -> None:
        self._gamma = options.advantages.gamma
        self._held = options.advantages.boundary_value == "hold"
        self._has_hindsight = options.advantages.hindsight
        known = known or {}
        self._warmup = CriticWarmup(options, known.get("warmup"))
        # With KL in the rewards, values include it and cannot be compared with returns that do not.
        self._measures = not options.policy_loss.has_kl_in_rewards
        self._hindsight = HindsightBuffer(self._gamma, due)
        self._open: defaultdict[int, dict[int, _OpenBoundary]] = defaultdict(dict)
        self._forgotten: set[int] = set()
        self._chooses_scale = options.advantages.unfinished_advantage_scale == AUTO
        self._slope = RunningSlope.from_state(known["slope"]) if "slope" in known else RunningSlope()

    def settings(self, version: int) -> UpdateSettings:
        """Returns what the critic's state says of the update that begins with this policy version."""
        scale = self._slope.scale() if self._chooses_scale else None
        return UpdateSettings(scale, policy_is_frozen=self._warmup.is_frozen(version))

    @property
    def warmup_responses(self) -> int | None:
        """Finished responses that the critic has learned from; None: its warm-up does not count them."""
        return self._warmup.responses

    def known(self) -> dict[str, Any]:
        """Returns what is known of the critic, as JSON."""
        return {"slope": self._slope.state(), "warmup": self._warmup.state()}

    @property
    def waiting(self) -> Sequence[Fragment]:
        """Windows that are due for their second training."""
        return self._hindsight.due

    def due(self) -> list[Fragment]:
        """Returns the windows that are due for their second training, and forgets them."""
        return self._hindsight.drain()

    def after_update(self, fragments: Sequence[Fragment], reports: pa.Table, version: int) -> list[ClosedBoundary]:
        """Notes the boundaries of an update, and returns the boundaries whose episodes ended in it.

        Args:
            fragments: Fragments that were trained, without windows in hindsight.
            reports: Reports of all learners (`tppo_rl.learner.update.FRAGMENT_REPORT_SCHEMA`).
            version: Policy version before the update.
        """
        numbers = reports.select(
            ["episode_id", "window_index", "held_value", "boundary_value", "mean_value", "left_out_advantages"]
        )
        rows = {(row["episode_id"], row["window_index"]): row for row in numbers.to_pylist()}
        times = Counter((fragment.episode_id, fragment.window_index) for fragment in fragments)
        closed: list[ClosedBoundary] = []
        is_frozen = self._warmup.is_frozen(version)
        for fragment in sorted(fragments, key=lambda fragment: fragment.window_index):
            if times[fragment.episode_id, fragment.window_index] > 1:
                # It was sampled again after the loss of an env-runner, so rows of the report cannot be told apart.
                continue
            if fragment.episode_id in self._forgotten:
                continue
            if fragment.finished:
                closed += self._close(fragment)
                self._hindsight.close(fragment)
            else:
                self._note(fragment, rows[fragment.episode_id, fragment.window_index], is_frozen)
        if self._chooses_scale or self._warmup.ends_by_slope:
            self._slope.add(*window_differences(closed))
        self._warmup.add(
            sum(fragment.finished for fragment in fragments),
            self._slope.least(ERRORS) if self._warmup.ends_by_slope else None,
        )
        return closed if self._measures else []

    def forget(self, episode_ids: Iterable[int]) -> None:
        """Gives up episodes that have ended and whose last window is not trained, so that their returns do not count."""
        for episode_id in episode_ids:
            self._open.pop(episode_id, None)
            self._hindsight.forget(episode_id)
            # Earlier windows may still wait for an update. One number for each such episode is kept.
            self._forgotten.add(episode_id)

    def _note(self, fragment: Fragment, row: Mapping[str, Any], is_frozen: bool) -> None:
        values = Boundary(row["held_value"], row["boundary_value"], row["mean_value"])
        end = fragment.num_positions
        # By window index, so that an episode that is generated anew after the loss of an env-runner replaces its windows.
        self._open[fragment.episode_id][fragment.window_index] = _OpenBoundary(end, checksum(fragment, end), values)
        # While the policy is frozen no window is trained, so hindsight has nothing to correct.
        if self._has_hindsight and not is_frozen:
            left_out = row["left_out_advantages"]
            self._hindsight.add(
                fragment,
                values.held if self._held else values.bootstrap,
                None if left_out is None else np.array(left_out, np.float32),
            )

    def _close(self, finished: Fragment) -> list[ClosedBoundary]:
        """Returns the boundaries of an episode with the returns that followed them, given its last fragment."""
        return [
            ClosedBoundary(
                window_index,
                boundary.values,
                return_after(finished, boundary.position, self._gamma),
                boundary.position - finished.prompt_length,
                finished.episode_id,
            )
            for window_index, boundary in self._open.pop(finished.episode_id, {}).items()
            # Boundaries with another checksum are of an attempt that was lost with its env-runner.
            if checksum(finished, boundary.position) == boundary.checksum
        ]
