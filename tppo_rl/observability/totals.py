"""Sums over a whole run for its summary; checkpoints hold them."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from tppo_rl.core.update_report import UpdateReport
from tppo_rl.rollout.statistics import RolloutStatistics


@dataclass
class RunTotals:
    """Sums and extremes. Seconds are wall-clock by part; those of env-runners are summed over env-runners."""

    slot_steps: int = 0
    productive_slot_steps: int = 0
    refills: int = 0
    wall_s: float = 0.0
    """Wall-clock of the processes before this one; above 0 if the run was resumed."""
    seconds: dict[str, float] = field(default_factory=dict)
    largest_staleness: int = 0
    largest_ratio_deviation: float = 0.0
    """Largest |ratio - 1| before the first step of any update."""
    largest_fresh_log_prob_diff: float = 0.0
    """Largest log-prob difference of engine and trainer, nats, over trained tokens of the trainer's own version and over
    held-out episodes."""

    def add_rollouts(self, statistics: RolloutStatistics) -> None:
        """Adds the work of env-runners."""
        self.slot_steps += statistics.slot_steps
        self.productive_slot_steps += statistics.productive_slot_steps
        self.refills += statistics.refills
        self.add_seconds("env_runner_sampling", statistics.sampling_seconds)
        self.add_seconds("env_runner_idle", statistics.idle_seconds)
        self.add_seconds("env_runner_weights", statistics.weight_seconds)

    def add_update(self, update: UpdateReport) -> None:
        """Takes over the extremes of an update."""
        self.largest_staleness = max(self.largest_staleness, update.largest_staleness)
        # It is absent if the first minibatch has nothing but windows in hindsight.
        deviation = update.metrics.get("first_ratio_max_deviation", 0.0)
        self.largest_ratio_deviation = max(self.largest_ratio_deviation, deviation)

    def add_seconds(self, part: str, seconds: float) -> None:
        """Adds wall-clock to a part of the run."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds

    @property
    def slot_occupancy(self) -> float:
        """Fraction of slot-steps that produced a token; 0 before the first."""
        return self.productive_slot_steps / self.slot_steps if self.slot_steps else 0.0

    def state(self) -> dict[str, Any]:
        """Returns the sums by name, for checkpoints and results."""
        return asdict(self)
