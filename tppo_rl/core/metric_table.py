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
    """Name under which the learner logs it, for metrics that the update step makes."""


METRICS = (
    Metric("tokens/sampled", "tokens", "sampled since the run began, as env-runners count"),
    Metric("tokens/trained", "tokens", "trained since the run began, as learners count"),
    Metric("tokens/queued", "tokens", "in fragments that wait for an update"),
    Metric("tokens/in_flight", "tokens", "in windows that are open on env-runners"),
    Metric("tokens/dropped", "tokens", "that will never be trained, all reasons"),
    Metric("tokens/sampled_per_second", "tokens/s", "sampled in the iteration, by its wall-clock"),
    Metric("tokens/trained_per_second", "tokens/s", "trained in the iteration, by its wall-clock"),
    Metric("rollout/return_mean", "reward", "mean return of the episodes that finished in the iteration"),
    Metric(
        "rollout/accuracy",
        "fraction",
        "correct among the episodes that finished in the iteration; absent where the environment does not say",
    ),
    Metric("rollout/response_length_mean", "tokens", "mean over the episodes that finished in the iteration"),
    Metric("rollout/response_length_max", "tokens", "longest of the episodes that finished in the iteration"),
    Metric("rollout/response_length_min", "tokens", "shortest of the episodes that finished in the iteration"),
    Metric("rollout/truncated_fraction", "fraction", "truncated among the episodes that finished in the iteration"),
    Metric("rollout/finished_episodes", "episodes", "that finished in the iteration"),
    Metric("rollout/windows_per_response", "windows", "mean over the episodes that finished in the iteration"),
    Metric(
        "rollout/versions_per_response", "versions", "newest minus oldest plus one of a finished episode's last window"
    ),
    Metric("rollout/slot_occupancy", "fraction", "slot-steps of the iteration that produced a token"),
    Metric("rollout/refills", "episodes", "begun in the iteration"),
    Metric(
        "rollout/scorer_errors",
        "responses",
        "on which the environment's scorer failed in the iteration (`info['scorer_error']`)",
    ),
    Metric("rollout/env_runner_idle_fraction", "fraction", "of env-runners' time in which nothing was asked of them"),
    Metric(
        "rollout/weight_load_fraction", "fraction", "of env-runners' time in which the engine stood still for weights"
    ),
    Metric("rollout/complete_groups", "groups", "whose responses all ended in the iteration"),
    Metric(
        "rollout/zero_variance_fraction",
        "fraction",
        "of these, whose returns (with `rewards` of verdicts: verdicts) were all equal",
    ),
    Metric("rollout/sampling_rounds", "", "rounds of dynamic sampling"),
    Metric(
        "staleness/mean", "versions", "trainer's version minus the token's, mean over trained tokens", "staleness_mean"
    ),
    Metric("staleness/max", "versions", "the same, largest", "staleness_max"),
    Metric(
        "staleness/in_queue",
        "versions",
        "trainer's version minus the oldest version in the queue after the update; absent where it is empty",
    ),
    Metric("policy/loss", "nats", "surrogate, KL and entropy terms, mean over trained tokens", "policy_loss"),
    Metric("policy/positive_lm_loss", "nats", "-log pi per token of imitated responses", "positive_lm_loss"),
    Metric("policy/reference_kl", "nats", "estimate of KL(policy || reference), mean, as in the loss", "reference_kl"),
    Metric(
        "policy/dual_clip_fraction", "fraction", "of trained tokens bounded by dual_clip", "policy/dual_clip_fraction"
    ),
    Metric(
        "policy/sequence_masked_fraction",
        "fraction",
        "of trained tokens left out by sequence_mask",
        "sequence_masked_fraction",
    ),
    Metric("hindsight/tokens", "tokens", "trained a second time, not among the trained ones", "hindsight_tokens"),
    Metric("hindsight/advantage_mean", "reward", "mean size of their advantages", "hindsight_advantage_mean"),
    Metric("policy/entropy", "nats", "of the distribution at each trained token, mean", "entropy"),
    Metric(
        "policy/clip_fraction_low",
        "fraction",
        "of trained tokens clipped below 1 - clip_low",
        "policy/clip_fraction_low",
    ),
    Metric(
        "policy/clip_fraction_high",
        "fraction",
        "of trained tokens clipped above 1 + clip_high",
        "policy/clip_fraction_high",
    ),
    Metric("policy/cap_fraction", "fraction", "of trained tokens whose weight cispo cut", "policy/cap_fraction"),
    Metric("policy/sequence_ratio", "", "gspo's ratio of whole responses, mean over tokens", "policy/sequence_ratio"),
    Metric("policy/approximate_kl", "nats", "k3 of behavior against current policy, mean", "approximate_kl"),
    Metric(
        "policy/token_fraction",
        "fraction",
        "of trained tokens whose fragment was drawn for the policy",
        "policy_token_fraction",
    ),
    Metric("policy/gradient_norm", "", "global norm before clipping, mean over steps", "policy_grad_norm"),
    Metric("policy/advantage_mean", "reward", "over trained tokens", "advantage_mean"),
    Metric("policy/advantage_std", "reward", "over trained tokens", "advantage_std"),
    Metric(
        "policy/unfinished_fraction",
        "fraction",
        "of trained tokens from unfinished fragments",
        "tokens_from_unfinished_fraction",
    ),
    Metric(
        "critic/loss",
        "reward^2",
        "half squared error to the target, mean over the value batch",
        "value_loss",
    ),
    Metric("critic/explained_variance", "fraction", "of Monte-Carlo returns, finished episodes", "explained_variance"),
    Metric(
        "critic/explained_variance_unfinished",
        "fraction",
        "of unfinished fragments' mean values, once their return is known",
    ),
    Metric("critic/value_mean", "reward", "mean value of response tokens of finished episodes", "finished_value_mean"),
    Metric("critic/return_mean", "reward", "mean Monte-Carlo return of the same tokens", "return_mean"),
    Metric("critic/gradient_norm", "", "global norm before clipping, mean over steps", "critic_grad_norm"),
    Metric("critic/finished_episodes", "episodes", "among the trained fragments", "finished_episodes"),
    Metric("critic/value_tokens", "tokens", "in the value batch", "value_batch_tokens"),
    Metric("critic/boundary_error_held", "reward", "|V(s_(l-1)) - G_l| at window ends, once the return is known, mean"),
    Metric(
        "critic/boundary_error_bootstrap", "reward", "|V(s_l) - G_l| at window ends, once the return is known, mean"
    ),
    Metric(
        "mismatch/log_prob_diff_mean",
        "nats",
        "|trainer - behavior log-prob| before the first step",
        "log_prob_diff_mean",
    ),
    Metric("mismatch/log_prob_diff_max", "nats", "the same, largest", "log_prob_diff_max"),
    Metric(
        "mismatch/fresh_log_prob_diff_max",
        "nats",
        "largest gap among tokens of the trainer's version",
        "fresh_log_prob_diff_max",
    ),
    Metric(
        "mismatch/fresh_log_prob_diff_mean",
        "nats",
        "mean gap among tokens of the trainer's version",
        "fresh_log_prob_diff_mean",
    ),
    Metric(
        "mismatch/ratio_deviation_max", "", "largest |ratio - 1| before the first step", "first_ratio_max_deviation"
    ),
    Metric("mismatch/importance_weight_mean", "", "ratio to behavior before the first step", "importance_weight_mean"),
    Metric("mismatch/importance_weight_max", "", "the same, largest", "importance_weight_max"),
    Metric("mismatch/importance_weight_min", "", "the same, smallest", "importance_weight_min"),
    Metric(
        "mismatch/effective_sample_size",
        "fraction",
        "of trained tokens, by importance weights",
        "effective_sample_size",
    ),
    Metric("mismatch/heldout_log_prob_diff_mean", "nats", "mean gap on held-out episodes of the newest weights"),
    Metric("mismatch/heldout_log_prob_diff_max", "nats", "largest gap on held-out episodes of the newest weights"),
    Metric("mismatch/probe_log_prob_diff", "nats", "gap of the last weight verification"),
    Metric("mismatch/alarm", "0/1", "mean gap of fresh tokens above `log_prob_diff_alarm`"),
    Metric("alarm/few_finished_episodes", "0/1", "too few in a value batch; this and the other alarms: `alarms.py`"),
    Metric("alarm/explained_variance", "0/1", "the critic's, far below its best"),
    Metric("alarm/boundary_error", "0/1", "of held values, far above its least"),
    Metric("alarm/slot_occupancy", "0/1", "finished slots are not refilled at once"),
    Metric("alarm/learner_idle", "0/1", "learners wait for fragments"),
    Metric("alarm/env_runner_idle", "0/1", "env-runners wait for updates"),
    Metric(
        "learner/processed_per_trained_token",
        "",
        "policy's forward positions for each trained token",
        "processed_per_trained_token",
    ),
    Metric("learner/padding_fraction", "fraction", "of padded positions that hold no token", "padding_fraction"),
    Metric("time/iteration", "s", "wall-clock of the iteration"),
    Metric("time/waiting_for_fragments", "s", "the driver waited for a batch; the learner was idle"),
    Metric("time/update", "s", "values, policy and critic, as the driver saw it"),
    Metric("time/values", "s", "critic forward for advantages", "values_seconds"),
    Metric("time/policy", "s", "policy update", "policy_seconds"),
    Metric("time/critic", "s", "critic update", "critic_seconds"),
    Metric("time/weights", "s", "fetching weights from the learner and sending them"),
    Metric("time/evaluation", "s", "held-out evaluation, if there was one since the last iteration"),
    Metric("heldout/accuracy_sampled", "fraction", "held-out prompts right at the training temperature"),
    Metric("heldout/accuracy_greedy", "fraction", "held-out prompts right when the likeliest token is taken"),
    Metric("heldout/response_length_sampled", "tokens", "mean response length at the training temperature"),
    Metric("heldout/response_length_greedy", "tokens", "mean greedy response length"),
)
