"""Every metric of a run: name, unit, definition.

Names are TensorBoard tags. All but `heldout/` are paths in `result.json` too, where evaluations are under `heldout_latest`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """One row of the table."""

    name: str
    """`group/name`."""
    unit: str
    definition: str
    learner_key: str | None = None
    """Name under which the learner logs it; None: the update step does not make it."""


METRICS = (
    Metric("tokens/sampled", "tokens", "tokens sampled since the run began, counted by env-runners"),
    Metric("tokens/trained", "tokens", "tokens trained since the run began, counted by learners"),
    Metric("tokens/queued", "tokens", "tokens of fragments that wait for an update"),
    Metric("tokens/in_flight", "tokens", "sampled tokens of windows that are open on env-runners"),
    Metric("tokens/dropped", "tokens", "tokens that will never be trained, for all reasons together"),
    Metric("tokens/sampled_per_second", "tokens/s", "tokens sampled in the iteration, divided by its wall-clock"),
    Metric("tokens/trained_per_second", "tokens/s", "tokens trained in the iteration, divided by its wall-clock"),
    Metric("rollout/return_mean", "reward", "mean return of the episodes that finished in the iteration"),
    Metric(
        "rollout/accuracy",
        "fraction",
        "fraction of right responses among the episodes that finished in the iteration; absent where the environment does not say",
    ),
    Metric(
        "rollout/response_length_mean", "tokens", "mean response length of the episodes that finished in the iteration"
    ),
    Metric("rollout/response_length_max", "tokens", "longest response of the episodes that finished in the iteration"),
    Metric("rollout/response_length_min", "tokens", "shortest response of the episodes that finished in the iteration"),
    Metric(
        "rollout/truncated_fraction",
        "fraction",
        "fraction of truncated episodes among those that finished in the iteration",
    ),
    Metric("rollout/finished_episodes", "episodes", "episodes that finished in the iteration"),
    Metric(
        "rollout/windows_per_response",
        "windows",
        "mean number of windows of the episodes that finished in the iteration",
    ),
    Metric(
        "rollout/versions_per_response",
        "versions",
        "newest minus oldest policy version plus one, in the last window of a finished episode, mean",
    ),
    Metric("rollout/slot_occupancy", "fraction", "fraction of the iteration's slot-steps that produced a token"),
    Metric("rollout/refills", "episodes", "episodes begun in the iteration"),
    Metric(
        "rollout/epoch",
        "epochs",
        "passes over the problems of a data set since the run began: episodes that ended, divided by those of an epoch; absent where the environment draws problems without end",
    ),
    Metric(
        "rollout/left_out_episodes",
        "episodes",
        "episodes that ended in the iteration and whose last window is not trained: not scored, or cut off and masked",
    ),
    Metric(
        "rollout/set_aside_episodes",
        "episodes",
        "episodes that were set aside since the run began, because env-runners died of their prompts",
    ),
    Metric(
        "reward_failures/all",
        "responses",
        "responses that could not be scored in the iteration, whatever became of them (`on_reward_failure`)",
    ),
    Metric("rollout/env_runner_idle_fraction", "fraction", "fraction of env-runners' time without a request"),
    Metric(
        "rollout/weight_load_fraction", "fraction", "fraction of env-runners' time in which the engine loaded weights"
    ),
    Metric("rollout/complete_groups", "groups", "groups whose responses all ended in the iteration"),
    Metric(
        "rollout/zero_variance_fraction",
        "fraction",
        "fraction of complete groups whose returns are all equal; with `rewards` other than `environment`, of groups that are all right or all wrong",
    ),
    Metric("rollout/sampling_rounds", "", "rounds of sampling until the update had its groups (dynamic sampling)"),
    Metric(
        "staleness/mean", "versions", "trainer's version minus the token's, mean over trained tokens", "staleness_mean"
    ),
    Metric(
        "staleness/max", "versions", "trainer's version minus the token's, largest over trained tokens", "staleness_max"
    ),
    Metric(
        "staleness/in_queue",
        "versions",
        "trainer's version minus the oldest version in the queue after the update; absent if it is empty",
    ),
    Metric("policy/loss", "nats", "surrogate, KL and entropy terms, mean over trained tokens", "policy_loss"),
    Metric("policy/positive_lm_loss", "nats", "-log pi per token of imitated responses, mean", "positive_lm_loss"),
    Metric("policy/reference_kl", "nats", "estimate of KL(policy || reference), mean, as in the loss", "reference_kl"),
    Metric(
        "policy/dual_clip_fraction",
        "fraction",
        "fraction of trained tokens whose loss dual_clip bounded",
        "policy/dual_clip_fraction",
    ),
    Metric(
        "policy/sequence_masked_fraction",
        "fraction",
        "fraction of trained tokens whose fragment sequence_mask left out",
        "sequence_masked_fraction",
    ),
    Metric(
        "hindsight/tokens",
        "tokens",
        "tokens trained a second time; `tokens/trained` does not count them again",
        "hindsight_tokens",
    ),
    Metric(
        "hindsight/advantage_mean",
        "reward",
        "mean absolute advantage of the tokens trained a second time",
        "hindsight_advantage_mean",
    ),
    Metric("policy/entropy", "nats", "entropy of the policy at each trained token, mean", "entropy"),
    Metric(
        "policy/clip_fraction_low",
        "fraction",
        "fraction of trained tokens clipped below 1 - clip_low",
        "policy/clip_fraction_low",
    ),
    Metric(
        "policy/clip_fraction_high",
        "fraction",
        "fraction of trained tokens clipped above 1 + clip_high",
        "policy/clip_fraction_high",
    ),
    Metric(
        "policy/cap_fraction", "fraction", "fraction of trained tokens whose weight cispo cut", "policy/cap_fraction"
    ),
    Metric("policy/sequence_ratio", "", "gspo's ratio of whole responses, mean over tokens", "policy/sequence_ratio"),
    Metric(
        "policy/approximate_kl",
        "nats",
        "k3 estimate of KL(behavior || policy), mean over trained tokens",
        "approximate_kl",
    ),
    Metric(
        "policy/token_fraction",
        "fraction",
        "fraction of trained tokens whose fragment was drawn for the policy",
        "policy_token_fraction",
    ),
    Metric("policy/gradient_norm", "", "global norm before clipping, mean over optimizer steps", "policy_grad_norm"),
    Metric("policy/advantage_mean", "reward", "mean advantage of trained tokens", "advantage_mean"),
    Metric("policy/advantage_std", "reward", "standard deviation of the advantages of trained tokens", "advantage_std"),
    Metric(
        "policy/unfinished_fraction",
        "fraction",
        "fraction of trained tokens in unfinished fragments",
        "tokens_from_unfinished_fraction",
    ),
    Metric(
        "policy/unfinished_scale",
        "",
        "factor on the advantages of unfinished windows, where unfinished_advantage_scale is auto",
        "unfinished_scale",
    ),
    Metric(
        "critic/loss",
        "",
        "loss of `critic_loss`, mean over the tokens of the value batch: half squared errors, or nats",
        "value_loss",
    ),
    Metric(
        "critic/explained_variance",
        "fraction",
        "fraction of the variance of finished episodes' Monte-Carlo returns that the values explain",
        "explained_variance",
    ),
    Metric(
        "critic/explained_variance_by_response",
        "fraction",
        "the same with all responses weighing the same: few long ones hold most of the tokens",
        "explained_variance_by_response",
    ),
    Metric(
        "critic/explained_variance_unfinished",
        "fraction",
        "fraction of the variance of the returns after unfinished fragments that the fragments' mean values explain",
    ),
    Metric(
        "critic/difference_slope",
        "",
        "how much of V(s_l) - V(s_0) over windows that did not finish the returns bear out: 1 for true values, 0 for noise",
    ),
    Metric(
        "critic/warmup_responses",
        "responses",
        "finished responses that the critic has learned from while the policy is frozen; where the policy begins before "
        "`critic_warmup_responses` of them, `critic_warmup_slope` was reached",
    ),
    Metric("critic/value_mean", "reward", "mean value of response tokens of finished episodes", "finished_value_mean"),
    Metric("critic/return_mean", "reward", "mean Monte-Carlo return of the same tokens", "return_mean"),
    Metric("critic/gradient_norm", "", "global norm before clipping, mean over optimizer steps", "critic_grad_norm"),
    Metric(
        "critic/finished_episodes", "episodes", "finished episodes among the trained fragments", "finished_episodes"
    ),
    Metric("critic/value_tokens", "tokens", "tokens of the value batch", "value_batch_tokens"),
    Metric("critic/boundary_error_held", "reward", "|V(s_(l-1)) - G_l| at window ends, once the return is known, mean"),
    Metric(
        "critic/boundary_error_bootstrap", "reward", "|V(s_l) - G_l| at window ends, once the return is known, mean"
    ),
    Metric(
        "mismatch/log_prob_diff_mean",
        "nats",
        "|trainer's - behavior log-prob| before the first optimizer step, mean",
        "log_prob_diff_mean",
    ),
    Metric(
        "mismatch/log_prob_diff_max",
        "nats",
        "|trainer's - behavior log-prob| before the first optimizer step, largest",
        "log_prob_diff_max",
    ),
    Metric(
        "mismatch/fresh_log_prob_diff_max",
        "nats",
        "largest log-prob difference among tokens of the trainer's version",
        "fresh_log_prob_diff_max",
    ),
    Metric(
        "mismatch/fresh_log_prob_diff_mean",
        "nats",
        "mean log-prob difference among tokens of the trainer's version",
        "fresh_log_prob_diff_mean",
    ),
    Metric(
        "mismatch/ratio_deviation_max",
        "",
        "largest |ratio - 1| before the first optimizer step",
        "first_ratio_max_deviation",
    ),
    Metric(
        "mismatch/importance_weight_mean",
        "",
        "policy / behavior probability before the first optimizer step, mean",
        "importance_weight_mean",
    ),
    Metric(
        "mismatch/importance_weight_max",
        "",
        "policy / behavior probability before the first optimizer step, largest",
        "importance_weight_max",
    ),
    Metric(
        "mismatch/importance_weight_min",
        "",
        "policy / behavior probability before the first optimizer step, smallest",
        "importance_weight_min",
    ),
    Metric(
        "mismatch/effective_sample_size",
        "fraction",
        "effective number of trained tokens by importance weights, as a fraction of their number",
        "effective_sample_size",
    ),
    Metric(
        "mismatch/heldout_log_prob_diff_mean",
        "nats",
        "mean log-prob difference on held-out episodes of the newest weights",
    ),
    Metric(
        "mismatch/heldout_log_prob_diff_max",
        "nats",
        "largest log-prob difference on held-out episodes of the newest weights",
    ),
    Metric(
        "mismatch/probe_log_prob_diff", "nats", "mean log-prob difference on the probe at the last weight verification"
    ),
    Metric("mismatch/alarm", "0/1", "mean log-prob difference of fresh tokens is above `log_prob_diff_alarm`"),
    Metric(
        "alarm/few_finished_episodes",
        "0/1",
        "too few finished episodes in a value batch; for this and the other alarms see `alarms.py`",
    ),
    Metric("alarm/explained_variance", "0/1", "the critic's explained variance is far below its best"),
    Metric("alarm/boundary_error", "0/1", "the error of held boundary values is far above its least"),
    Metric("alarm/wrong_differences", "0/1", "the critic's differences over windows point away from later returns"),
    Metric("alarm/slot_occupancy", "0/1", "finished slots are not refilled at once"),
    Metric("alarm/learner_idle", "0/1", "learners wait for fragments"),
    Metric("alarm/env_runner_idle", "0/1", "env-runners wait for updates"),
    Metric(
        "learner/processed_per_trained_token",
        "",
        "positions that the policy's forward passes process, per trained token and pass",
        "processed_per_trained_token",
    ),
    Metric(
        "learner/padding_fraction",
        "fraction",
        "fraction of the positions of the policy's passes that are padding",
        "padding_fraction",
    ),
    Metric("time/iteration", "s", "wall-clock of the iteration"),
    Metric("time/waiting_for_fragments", "s", "the driver's wait for a batch; the learner is idle"),
    Metric("time/update", "s", "values, policy and critic, as the driver sees it"),
    Metric("time/values", "s", "the critic's forward passes for advantages", "values_seconds"),
    Metric("time/policy", "s", "policy update", "policy_seconds"),
    Metric("time/critic", "s", "critic update", "critic_seconds"),
    Metric("time/weights", "s", "fetching weights from the learner and sending them"),
    Metric("time/evaluation", "s", "held-out evaluation, if there was one since the last iteration"),
    Metric(
        "heldout/accuracy_sampled",
        "fraction",
        "fraction of right responses to held-out prompts, sampled at the training temperature",
    ),
    Metric("heldout/accuracy_greedy", "fraction", "fraction of right responses to held-out prompts, greedy"),
    Metric(
        "heldout/response_length_sampled",
        "tokens",
        "mean length of held-out responses, sampled at the training temperature",
    ),
    Metric("heldout/response_length_greedy", "tokens", "mean length of held-out responses, greedy"),
)
