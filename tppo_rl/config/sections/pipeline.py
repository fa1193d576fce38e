"""Options of the pipeline: the coupling of sampling and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tppo_rl.config.section import Condition, Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

_LOG_PROB_DIFF_ALARM = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}


_ASYNC = Condition("mode='async'", lambda options: options.pipeline.mode == "async")
_ACTORS = Condition(
    "num_env_runners or evaluation_num_env_runners of 1 or more",
    lambda options: options.rollout.num_env_runners > 0 or options.evaluation.evaluation_num_env_runners > 0,
)
_VLLM_ACTORS = Condition(
    "num_env_runners of 1 or more and the engine 'vllm'",
    lambda options: options.rollout.num_env_runners > 0 and options.rollout.engine.type == "vllm",
)
_REFILLED = Condition(
    "whole responses (window_length=null), mode='async' or partial_rollouts, and max_staleness of 1 or more",
    lambda options: not options.rollout.has_windows and options.staleness_bound > 0,
)


class PipelineOptions(Section):
    """The coupling of sampling and training."""

    mode: Literal["async", "sync"] = option(
        "async",
        "`sync`: every slot generates one window, then one update follows (the paper); `async`: sampling goes on during "
        "updates, as far as `max_staleness` allows.",
    )
    partial_rollouts: bool = option(
        False,
        "Whole responses in `sync` mode: refill a slot at once when its response has ended, and let what has not ended when an update "
        "has its tokens go on under the next weights. Without it a step waits for the longest response; `async` does it always.",
    )
    max_staleness: int = option(
        2, "Most policy versions between a token's sampling and its training (async, and `partial_rollouts`).", ge=0
    )
    max_queued_batches: float | None = option(
        None,
        "Batches that wait for an update or were asked for, from which on env-runners wait, unless an update waits for what they "
        "hold; None: `max_staleness` with windows, 1 with whole responses.",
        ge=1,
        read_with=_ASYNC,
    )
    old_responses: Literal["wait", "drop"] = option(
        "wait",
        "Whole responses with a token that would be older than `max_staleness`: `wait` holds updates up until they have ended, and "
        "all are trained; `drop` leaves them out when they have ended (`too_old`). Long responses are dropped more often than "
        "short ones, so that what is trained is shorter than what the policy writes.",
        read_with=_REFILLED,
    )
    kv_on_update: Literal["recompute", "keep"] = option(
        "recompute", "At a weight update, compute the keys and values of running requests anew, or keep them."
    )
    weight_transport: Literal["object_store", "broadcast"] = option(
        "object_store",
        "Way of new weights from the first learner to the engines. `object_store`: Ray's object store, and from there a file in shared "
        "memory where an engine's workers have processes of their own. `broadcast`: from the learner's process to those of the workers by "
        "torch.distributed (gloo, over TCP), without shared memory; each worker keeps a copy of the weights in the host's memory.",
        read_with=_VLLM_ACTORS,
    )
    log_prob_diff_alarm: float | None = option(
        None,
        "Mean difference between the engine's and the trainer's log-probs, in nats, above which an alarm goes on; None: "
        "depends on `dtype`.",
        gt=0,
    )

    start_timeout_s: float = option(
        1800.0,
        "Seconds that env-runners, and then learner actors, have for their first start, with the wait for room in Ray's cluster; then the "
        "run ends with one message.",
        gt=0,
    )
    env_runner_timeout_s: float = option(
        300.0,
        "Seconds after which a run gives up while no env-runner is there, or an evaluation gets no answer; large models on slow disks "
        "start for longer.",
        gt=0,
    )
    heartbeat_timeout_s: float = option(
        300.0,
        "Seconds without a sign of life after which an env-runner that has something to do counts as hung: it is killed and started anew, "
        "and its episodes go on elsewhere. One engine step, one load of new weights, and in the env-runner's own process one call of a "
        "reward function and one `reset` or `step` of an environment may not take longer.",
        gt=0,
        read_with=_ACTORS,
    )

    def largest_log_prob_diff(self, dtype: str) -> float:
        """Returns the mean difference of log-probs, in nats, above which the alarm goes on."""
        return self.log_prob_diff_alarm or _LOG_PROB_DIFF_ALARM[dtype]

    def check(self, options: Options) -> None:
        """Checks that a run can proceed, and that it is corrected for staleness."""
        self._check_partial_rollouts(options)
        if self.mode == "async":
            self._check_async(options)
        if options.staleness_bound and options.policy_loss.off_policy_correction == "none":
            refuse(
                "off_policy_correction",
                options.policy_loss.off_policy_correction,
                f"in mode={self.mode!r}{'' if self.mode == 'async' else ' with partial_rollouts'} tokens are older than the trainer's "
                "weights, and old log-probs recomputed by the trainer make every ratio 1, so that nothing is corrected or clipped; "
                "set it to 'behavior', 'decoupled' or 'truncated_importance', or mode to 'sync'",
            )

    def _check_partial_rollouts(self, options: Options) -> None:
        if not self.partial_rollouts:
            return
        if options.rollout.has_windows:
            refuse(
                "partial_rollouts",
                True,
                f"with window_length={options.rollout.window_length} responses run on through updates anyway, and are trained window by "
                "window; leave it out, or set window_length to null",
            )

    def _check_async(self, options: Options) -> None:
        if self.max_staleness == 0:
            refuse(
                "max_staleness",
                self.max_staleness,
                "mode='async' trains tokens that are at least one update old; set max_staleness to 1 or more, or mode to "
                "'sync'",
            )
        if options.rollout.num_env_runners == 0:
            refuse(
                "num_env_runners",
                options.rollout.num_env_runners,
                "mode='async' needs an env-runner beside the learner; set num_env_runners to 1 or more, or mode to 'sync'",
            )
