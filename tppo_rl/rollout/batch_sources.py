"""Sources of an update's fragments: asynchronous ones, synchronous windows, whole groups, or partial rollouts."""

from __future__ import annotations

from typing import Protocol

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.waiting import stage, stop_here
from tppo_rl.rollout.controller import RolloutController, Weights
from tppo_rl.rollout.groups import sample_groups
from tppo_rl.rollout.sync_rollouts import SyncRollouts


class BatchSource(Protocol):
    """Gives the fragments of one update after another."""

    def next(self) -> list[Fragment]:
        """Waits for the fragments of the next update.

        Raises:
            StageCut: the user stops the run; no token is lost.
        """


class Queued:
    """Queued windows or whole responses, oldest first, while env-runners go on sampling (async)."""

    def __init__(self, rollouts: RolloutController) -> None:
        self._rollouts = rollouts

    def next(self) -> list[Fragment]:
        return self._rollouts.next_batch()


class SyncWindows:
    """One window of every slot, sampled by the newest weights, as in the paper."""

    def __init__(self, rollouts: SyncRollouts, weights: Weights) -> None:
        self._rollouts = rollouts
        self._weights = weights

    def next(self) -> list[Fragment]:
        self._weights.wait_until_delivered()
        stop_here()
        with stage("sampling one window of every slot", cut="after", part="update"):
            return self._rollouts.one_window()


class PartialRollouts:
    """Responses that have ended. Slots are refilled at once; what has not ended goes on under the next weights (sync)."""

    def __init__(self, rollouts: SyncRollouts, weights: Weights) -> None:
        self._rollouts = rollouts
        self._weights = weights

    def next(self) -> list[Fragment]:
        self._weights.wait_until_delivered()
        stop_here()
        return self._rollouts.ended_responses()


class WholeGroups:
    """One whole response of every slot, in groups; with `dynamic_sampling` groups without variance are replaced."""

    def __init__(self, rollouts: SyncRollouts, weights: Weights, options: Options) -> None:
        self._rollouts = rollouts
        self._weights = weights
        self._options = options.groups
        self._num_groups = options.rollout.num_slots // options.groups.group_size
        self._by_correctness = not options.rewards.rewards.is_environment

    def next(self) -> list[Fragment]:
        self._weights.wait_until_delivered()
        stop_here()
        with stage("sampling whole responses", cut="after", part="update"):
            sample = sample_groups(
                self._rollouts.whole_responses,
                self._rollouts.groups,
                num_groups=self._num_groups,
                group_size=self._options.group_size,
                replace=self._options.dynamic_sampling,
                max_rounds=self._options.dynamic_sampling_max_rounds,
                by_correctness=self._by_correctness,
            )
        self._rollouts.add_group_sample(sample)
        return sample.fragments


def batch_source(options: Options, rollouts: RolloutController, weights: Weights) -> BatchSource:
    """Returns the source that the options ask for; synchronous ones need a `SyncRollouts`."""
    if options.pipeline.mode == "async":
        return Queued(rollouts)
    assert isinstance(rollouts, SyncRollouts), "a synchronous run has a controller that waits"
    if options.rollout.has_windows:
        return SyncWindows(rollouts, weights)
    if options.pipeline.partial_rollouts:
        return PartialRollouts(rollouts, weights)
    return WholeGroups(rollouts, weights, options)
