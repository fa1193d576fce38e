"""Sums over a whole run that its summary shows; they survive a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tppo_rl.core.update_report import UpdateReport
from tppo_rl.rollout.statistics import RolloutStatistics


@dataclass
class RunTotals:
    """Seconds are wall-clock of the part named; env-runner seconds are summed over env-runners."""

    slot_steps: int = 0
    productive_slot_steps: int = 0
    refills: int = 0
    wall_s: float = 0.0
    """Of the processes before this one, where the run was resumed."""
    seconds: dict[str, float] = field(default_factory=dict)
    largest_staleness: int = 0
    largest_ratio_deviation: float = 0.0
    """Largest |ratio - 1| before the first step of any update."""
    largest_fresh_log_prob_diff: float = 0.0
    """Between engine and trainer, nats, over all tokens that were trained at the version that sampled them."""

    def add_rollouts(self, statistics: RolloutStatistics) -> None:
        """Adds what env-runners did."""
        self.slot_steps += statistics.slot_steps
        self.productive_slot_steps += statistics.productive_slot_steps
        self.refills += statistics.refills
        self.add_seconds("env_runner_sampling", statistics.sampling_seconds)
        self.add_seconds("env_runner_idle", statistics.idle_seconds)
        self.add_seconds("env_runner_weights", statistics.weight_seconds)

    def add_update(self, update: UpdateReport) -> None:
        """Takes over the extremes of an update."""
        self.largest_staleness = max(self.largest_staleness, update.largest_staleness)
        # Absent where the first minibatch is of windows in hindsight alone.
        deviation = update.metrics.get("first_ratio_max_deviation", 0.0)
        self.largest_ratio_deviation = max(self.largest_ratio_deviation, deviation)

    def add_seconds(self, part: str, seconds: float) -> None:
        """Adds wall-clock to a part of the run."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def slot_occupancy(self) -> float:
        """Share of slot-steps that produced a token, 0 before the first."""
        return self.productive_slot_steps / self.slot_steps if self.slot_steps else 0.0

    def state(self) -> dict[str, Any]:
        """For checkpoints and results."""
        return asdict(self)
