"""The typed record of one iteration, and the metrics that follow from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tppo_rl.core.boundaries import ClosedBoundary
from tppo_rl.core.update_report import UpdateReport
from tppo_rl.observability.metrics import (
    boundary_metrics,
    episode_metrics,
    group_metrics,
    learner_metrics,
    reward_metrics,
)
from tppo_rl.rollout.ledger import TokenCounts
from tppo_rl.rollout.statistics import RolloutStatistics
from tppo_rl.rollout.weight_sync import LogProbDiff


@dataclass(frozen=True, eq=False)
class Iteration:
    """One iteration: waiting for a batch, its update, new weights."""

    number: int
    """Number of the iteration, from 1."""
    update: UpdateReport
    closed: Sequence[ClosedBoundary]
    """Boundaries whose episodes the update has ended."""
    counts: TokenCounts
    """Tokens of the whole run, after the update."""
    rollouts: RolloutStatistics
    """Work of the env-runners since the last iteration."""
    sampled_before: int
    """Tokens that the run had sampled before the iteration."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock by part: `iteration`, `waiting_for_fragments`, `update`, `weights`, and `evaluation` where there was one."""
    probe_diff: float | None = None
    """Mean log-prob difference on the probe, nats; None if weights were not verified since the last iteration."""
    heldout_diff: LogProbDiff | None = None
    """Engine against trainer on held-out episodes; None if there was no evaluation since the last iteration."""

    warmup_responses: int | None = None
    """Finished responses that the critic has learned from; None: the policy trains, or its warm-up does not count them."""

    def metrics(self) -> dict[str, float]:
        """Returns the table's metrics (`tppo_rl.core.metric_table`) that have a value in this iteration, without alarms."""
        values = learner_metrics(self.update.metrics) | boundary_metrics(self.closed)
        values |= self._token_metrics() | episode_metrics(self.rollouts.scored_fragments) | self._rollout_metrics()
        values |= {f"time/{part}": seconds for part, seconds in self.seconds.items()}
        if self.warmup_responses is not None:
            values["critic/warmup_responses"] = self.warmup_responses
        if self.probe_diff is not None:
            values["mismatch/probe_log_prob_diff"] = self.probe_diff
        if self.heldout_diff is not None:
            values["mismatch/heldout_log_prob_diff_mean"] = self.heldout_diff.mean
            values["mismatch/heldout_log_prob_diff_max"] = self.heldout_diff.largest
        return values

    def _token_metrics(self) -> dict[str, float]:
        counts, seconds = self.counts, self.seconds["iteration"]
        return {
            "tokens/sampled": counts.sampled,
            "tokens/trained": counts.trained,
            "tokens/queued": counts.queued,
            "tokens/in_flight": counts.in_flight,
            "tokens/dropped": sum(counts.dropped.values()),
            "tokens/sampled_per_second": (counts.sampled - self.sampled_before) / seconds,
            "tokens/trained_per_second": self.update.trained_tokens / seconds,
        }

    def _rollout_metrics(self) -> dict[str, float]:
        rollouts = self.rollouts
        busy = max(rollouts.seconds, 1e-9)
        values = {
            "rollout/refills": float(rollouts.refills),
            "rollout/left_out_episodes": float(len(rollouts.scores.left_out)),
            "rollout/set_aside_episodes": float(rollouts.set_aside_episodes),
            "rollout/env_runner_idle_fraction": rollouts.idle_seconds / busy,
            "rollout/weight_load_fraction": rollouts.weight_seconds / busy,
        }
        if rollouts.queue_staleness is not None:
            values["staleness/in_queue"] = float(rollouts.queue_staleness)
        if rollouts.epochs is not None:
            values["rollout/epoch"] = rollouts.epochs
        if rollouts.slot_steps:
            values["rollout/slot_occupancy"] = rollouts.productive_slot_steps / rollouts.slot_steps
        values |= reward_metrics(rollouts.scores)
        return values | (group_metrics(rollouts.group_sample) if rollouts.group_sample is not None else {})
