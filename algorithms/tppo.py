"""Truncated PPO (T-PPO, arXiv 2506.15050): training on windows of answers that are still being written.

            ┌──────────────────────────── weights, version + 1 ───────────────────────────┐
            ▼                                                                             │
      env-runners ──fragments──▶ rollouts ──batch──▶ learners ──report──▶ boundaries ─────┤
       slots, windows            ledger, queue       EGAE, policy,        closed by       │
            ▲                         │              critic               episodes' ends  │
            └──────── tickets ────────┘                  ▲                     │          │
                                                         └──── hindsight ──────┘          ▼
                                                                                      recorder

    mode="async"  env-runners generate all the time; while one batch is trained the next ones are sampled. Staleness is
                  bounded as `tppo_rl/rollout/train_queue.py` derives; what waits for what is in `rollout/controller.py`.
    mode="sync"   the paper: every slot generates one window, then one update, then new weights. With a window as long as
                  the response cap every slot generates one whole response, and the step waits for the longest: PPO.

    advantages    A_t = sum_k (gamma lambda)^k delta_(t+k) within the window, V(s_l) := V(s_(l-1)) where it is unfinished
                  (`maths/advantages.py`)
    policy loss   clipped surrogate, mean over the window's tokens (`learner/policy_losses.py`)
    critic loss   over finished episodes, Monte-Carlo returns (`learner/value_batches.py`): cross-entropy where the range of
                  returns is known, else (V(s_t) - G_t)^2 / 2 (`maths/value_forms.py`)

An iteration is one update. Differences from the paper: the critic's cross-entropy; log-probs of the behavior policy come from the engine, and in async
mode a response may span several policy versions, each token keeping its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

if TYPE_CHECKING:
    from tppo_rl.learner.boundaries import BoundaryTracker
    from tppo_rl.learner.client import LearnerClient
    from tppo_rl.observability.batch_log import BatchLog
    from tppo_rl.observability.recorder import Recorded, RunRecorder
    from tppo_rl.rollout.batch_sources import BatchSource
    from tppo_rl.rollout.controller import RolloutController
    from tppo_rl.rollout.resting_engines import RestingEngines
    from tppo_rl.rollout.weight_sync import WeightSync

SPEC = AlgorithmSpec(
    name="TPPO",
    title="Truncated PPO",
    paper="arXiv 2506.15050",
    batches="windows",
    advantages="egae",
    policy_loss="clipped",
    critic="separate",
)


@dataclass
class TrainingLoop:
    """The parts of a run and one iteration of it. All algorithms share it; they differ by their parts."""

    rollouts: RolloutController
    batches: BatchSource
    learners: LearnerClient
    boundaries: BoundaryTracker
    weights: WeightSync
    engines: RestingEngines
    recorder: RunRecorder
    batch_log: BatchLog | None
    meanwhile: Callable[[], object] | None
    """What is done while learners train: asynchronous runs poll env-runners, synchronous ones wait."""

    def training_step(self) -> Recorded:
        """One batch of fragments, one update, new weights."""
        self.recorder.begin_iteration()
        with self.recorder.clock("waiting_for_fragments"):
            batch = self.batches.next()
        with self.recorder.clock("update"), self.engines.asleep():
            settings = self.boundaries.settings(self.weights.version)
            if settings.policy_is_frozen:
                self.weights.expect_no_change()
            update = self.learners.update(batch + self.boundaries.due(), self.meanwhile, settings)
            self.rollouts.update_ended()
        self.recorder.record_episodes(batch, update.fragments)
        counts = self.rollouts.record_trained(update.trained_tokens, update.largest_staleness)
        closed = self.boundaries.after_update(batch, update.fragments, self.weights.version)
        with self.recorder.clock("weights"):
            probe_diff = self.weights.push_and_verify()
        rollouts = self.rollouts.drain_statistics()
        self.boundaries.forget(rollouts.scores.left_out)
        warmup = self.boundaries.warmup_responses if settings.policy_is_frozen else None
        recorded = self.recorder.record(update, closed, counts, rollouts, probe_diff, warmup)
        if self.batch_log is not None:
            checksum = self.learners.weights_checksum()
            self.batch_log.record(recorded.iteration.number, batch, rollouts.scores.left_out, checksum)
        return recorded


__getattr__ = lazy_classes(SPEC)  # TPPO and TPPOConfig
