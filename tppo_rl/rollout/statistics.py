"""Statistics of the env-runners' work since the last update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.core.fragments import Fragment
from tppo_rl.core.spans import Span
from tppo_rl.rollout.groups import GroupSample
from tppo_rl.rollout.responses import REWARD_FAILED, Scores
from tppo_rl.rollout.sample_result import SampleResult


@dataclass
class RolloutStatistics:
    """Sums over the results of env-runners; seconds are summed over env-runners."""

    slot_steps: int = 0
    productive_slot_steps: int = 0
    refills: int = 0
    scores: Scores = field(default_factory=Scores)
    """What scoring gave."""
    sampling_seconds: float = 0.0
    idle_seconds: float = 0.0
    weight_seconds: float = 0.0
    spans: list[Span] = field(default_factory=list)
    """What env-runners and scoring workers did."""
    fragments: list[Fragment] = field(default_factory=list)
    queue_staleness: int | None = None
    """The trainer's version minus the oldest version in the train queue, after the update; None where the queue is empty."""
    epochs: float | None = None
    """Passes over the environment's problems since the run began; None where problems have no end."""
    set_aside_episodes: int = 0
    """Episodes that were set aside since the run began, because env-runners died of their prompts."""
    group_sample: GroupSample | None = None
    """Whole groups that were sampled for the update; None without groups."""
    runner_metrics: list[dict[str, Any]] = field(default_factory=list)
    """RLlib's metrics of each result."""

    @property
    def scored_fragments(self) -> list[Fragment]:
        """Fragments without the last windows of responses that could not be scored, whose returns mean nothing."""
        left_out = self.scores.left_out
        return [one for one in self.fragments if not one.finished or left_out.get(one.episode_id) != REWARD_FAILED]

    @property
    def seconds(self) -> float:
        """Time of all env-runners together."""
        return self.sampling_seconds + self.idle_seconds + self.weight_seconds

    def add(self, result: SampleResult, fragments: Sequence[Fragment]) -> None:
        """Adds one result, given the fragments that it holds."""
        self.slot_steps += result.slot_steps
        self.productive_slot_steps += result.productive_slot_steps
        self.refills += result.refills
        self.scores.add(result.scores)
        self.sampling_seconds += result.seconds
        self.idle_seconds += result.idle_seconds
        self.weight_seconds += result.weight_seconds
        self.spans += result.spans
        self.fragments += fragments
        if result.metrics:
            self.runner_metrics.append(result.metrics)
