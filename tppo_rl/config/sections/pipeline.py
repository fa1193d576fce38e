"""Options of the pipeline: the coupling of sampling and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from tppo_rl.config.section import Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

_LOG_PROB_DIFF_ALARM = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}


class PipelineOptions(Section):
    """The coupling of sampling and training."""

    mode: Literal["async", "sync"] = option(
        "async",
        "`sync`: every slot generates one window, then one update follows (the paper); `async`: sampling goes on during "
        "updates, as far as `max_staleness` allows.",
    )
    max_staleness: int = option(2, "Most policy versions between a token's sampling and its training (async).", ge=0)
    kv_on_update: Literal["recompute", "keep"] = option(
        "recompute", "At a weight update, compute the keys and values of running requests anew, or keep them."
    )
    log_prob_diff_alarm: float | None = option(
        None,
        "Mean difference between the engine's and the trainer's log-probs, in nats, above which an alarm goes on; None: "
        "depends on `dtype`.",
        gt=0,
    )

    env_runner_timeout_s: float = option(
        300.0,
        "Seconds after which a run gives up while no env-runner is there, or one takes no weights; large models on slow disks "
        "start for longer.",
        gt=0,
    )

    def largest_log_prob_diff(self, dtype: str) -> float:
        """Returns the mean difference of log-probs, in nats, above which the alarm goes on."""
        return self.log_prob_diff_alarm or _LOG_PROB_DIFF_ALARM[dtype]

    def check(self, options: Options) -> None:
        """Checks that an asynchronous run can proceed, and that it is corrected for staleness."""
        if self.mode == "sync":
            return
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
        if options.policy_loss.off_policy_correction == "none":
            refuse(
                "off_policy_correction",
                options.policy_loss.off_policy_correction,
                "in mode='async' tokens are older than the trainer's weights, and old log-probs recomputed by the trainer "
                "make every ratio 1, so that nothing is corrected or clipped; set it to 'behavior', 'decoupled' or "
                "'truncated_importance', or mode to 'sync'",
            )
