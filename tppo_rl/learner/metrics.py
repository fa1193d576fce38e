"""Scalar metrics of an update: names, units, and their computation from global sums and maxima.

| metric | meaning |
|---|---|
| policy_loss | surrogate, KL and entropy terms per token, mean over all optimizer steps |
| positive_lm_loss | -log pi per token of the responses that were imitated; absent without them |
| entropy | nats per token, at the sampling temperature |
| policy/<name> | metric of the policy loss (`tppo_rl.learner.policy_losses`), mean over tokens |
| reference_kl | estimate of KL(policy ‖ reference), nats per token; absent without a KL term in the loss |
| sequence_masked_fraction | fraction of tokens whose fragment the sequence mask took out |
| approximate_kl | k3 estimate of KL(behavior ‖ policy), nats per token, as trained |
| first_ratio_mean, _max, _min, _max_deviation | pi / pi_old on the first minibatch before any step; deviation = abs(ratio - 1) |
| log_prob_diff_mean, log_prob_diff_max | abs(trainer - behavior log-prob), nats, on the first minibatch |
| fresh_log_prob_diff_mean, _max | abs(trainer - behavior log-prob), nats, on tokens of the current policy version in the first minibatch; absent without them |
| importance_weight_mean, _max, _min | pi / behavior on the first minibatch |
| effective_sample_size | effective number of the first minibatch's tokens by importance weights, as a fraction of their number; 1 = equal weights |
| policy_grad_norm, critic_grad_norm | global norm before clipping, mean over optimizer steps; absent without steps |
| policy_steps, critic_steps | optimizer steps |
| policy_skipped_steps, critic_skipped_steps | optimizer steps that were skipped because the gradient was not finite |
| value_loss | the critic's loss per token (`critic_loss`), mean over all critic steps; absent without steps |
| explained_variance | fraction of the variance of finished episodes' returns that the values before the update explain; absent if returns are equal |
| explained_variance_by_response | the same with all responses weighing the same, however long they are |
| value_mean | V(s_t), mean over window tokens |
| finished_value_mean, return_mean | V and G, means over finished responses; absent without them |
| finished_episodes | episodes that finished in the batch |
| value_batch_tokens | tokens on which the critic was trained (counted once) |
| hindsight_tokens | tokens that are trained a second time; no other count of this table has them |
| hindsight_advantage_mean | mean absolute advantage of the tokens that are trained a second time; absent without them |
| fragments, trained_tokens | size of the policy batch (tokens counted once) |
| tokens_from_unfinished_fraction | fraction of trained tokens whose fragment is unfinished |
| policy_token_fraction | fraction of trained tokens whose fragment was drawn for a pass of the policy; absent while the policy is frozen |
| processed_tokens | positions of the policy's passes, without padding; contexts without a gradient once for all passes |
| processed_per_trained_token | processed positions per trained token and pass |
| padding_fraction | fraction of padding among the positions that the policy's passes compute |
| advantage_mean, advantage_std | mean and standard deviation of the advantages of window tokens |
| staleness_mean, staleness_max | policy version before the update - version of the token |
| learning_rate, critic_learning_rate | learning rates of this update; the policy's is 0 while it is frozen |
| values_seconds, policy_seconds, critic_seconds | wall-clock of the slowest learner |

A metric that has no meaning in an update is left out rather than given as NaN.
"""

from __future__ import annotations

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.metric_sums import MetricSums
from tppo_rl.learner.optimizers import StepReport
from tppo_rl.learner.targets import Targets
from tppo_rl.learner.value_batches import finished_returns
from tppo_rl.maths.importance import effective_sample_size
from tppo_rl.maths.reduce import mean, response_weights, variance
from tppo_rl.maths.value import explained_variance

STATISTIC_SUMS = (
    "fragments",
    "window_tokens",
    "unfinished_tokens",
    "hindsight_tokens",
    "value_tokens",
    "finished_episodes",
    "advantage_sum",
    "squared_advantage_sum",
    "staleness_sum",
    "window_values",
    "value_sum",
    "predicted_tokens",
    "predicted_value_sum",
    "return_sum",
    "squared_return_sum",
    "error_sum",
    "squared_error_sum",
    "predicted_responses",
    "return_by_response",
    "squared_return_by_response",
    "error_by_response",
    "squared_error_by_response",
)
"""Sums that `add_statistics` adds to `metric_sums`."""

STATISTIC_MAXIMA = ("staleness_max",)
"""Maxima that `add_statistics` adds to `metric_sums`."""


def add_statistics(
    metric_sums: MetricSums, batch: TrainBatch, targets: Targets, policy_version: int, options: Options
) -> None:
    """Adds the statistics of a batch that are known before training."""
    # Windows in hindsight were counted when they were first trained.
    first_time = ~batch.hindsight
    mask = batch.window.mask & first_time[:, None]
    advantages = targets.advantages[mask].double()
    staleness = policy_version - batch.versions[mask]
    metric_sums.add("fragments", first_time)
    metric_sums.add("window_tokens", batch.window.lengths[first_time])
    metric_sums.add("unfinished_tokens", batch.window.lengths[first_time & ~batch.finished])
    metric_sums.add("hindsight_tokens", batch.window.lengths[batch.hindsight])
    metric_sums.add("finished_episodes", len(batch.finished_rows))
    metric_sums.add("advantage_sum", advantages)
    metric_sums.add("squared_advantage_sum", advantages.square())
    metric_sums.add("staleness_sum", staleness)
    metric_sums.largest("staleness_max", staleness)
    if targets.value_batch is not None:
        metric_sums.add("value_tokens", targets.value_batch.tokens.lengths)
    if targets.values is None:
        return
    metric_sums.add("window_values", batch.window.lengths[first_time])
    metric_sums.add("value_sum", targets.values.window[mask])
    finished = batch.response.mask
    returns = finished_returns(batch, options)[finished].double()
    predicted = targets.values.response[finished].double()
    metric_sums.add("predicted_tokens", len(returns))
    metric_sums.add("predicted_value_sum", predicted)
    metric_sums.add("return_sum", returns)
    metric_sums.add("squared_return_sum", returns.square())
    metric_sums.add("error_sum", returns - predicted)
    metric_sums.add("squared_error_sum", (returns - predicted).square())
    weights = response_weights(batch.response.lengths)[finished.nonzero()[:, 0]].double()
    metric_sums.add("predicted_responses", batch.response.lengths > 0)
    metric_sums.add("return_by_response", weights * returns)
    metric_sums.add("squared_return_by_response", weights * returns.square())
    metric_sums.add("error_by_response", weights * (returns - predicted))
    metric_sums.add("squared_error_by_response", weights * (returns - predicted).square())


def scalars(
    totals: dict[str, float],
    loss_totals: dict[str, float],
    options: Options,
    policy_reports: list[StepReport],
    critic_reports: list[StepReport],
) -> dict[str, float]:
    """Returns the metrics of the module's table, without seconds and learning rates."""
    metrics = {
        "fragments": totals["fragments"],
        "trained_tokens": totals["window_tokens"],
        "processed_tokens": totals["processed_tokens"],
        "finished_episodes": totals["finished_episodes"],
        "value_batch_tokens": totals["value_tokens"],
        "hindsight_tokens": totals["hindsight_tokens"],
    }
    metrics |= _batch_metrics(totals)
    metrics |= _policy_metrics(totals, options.optimizer.num_epochs)
    if totals["trained_passes"]:
        metrics |= {f"policy/{name}": mean(total, totals["trained_passes"]) for name, total in loss_totals.items()}
    metrics |= _first_minibatch_metrics(totals)
    metrics |= _critic_metrics(totals)
    metrics |= _step_metrics("policy", policy_reports) | _step_metrics("critic", critic_reports)
    return metrics


def _batch_metrics(totals: dict[str, float]) -> dict[str, float]:
    count = totals["window_tokens"]
    if not count:
        return {}
    spread = variance(totals["advantage_sum"], totals["squared_advantage_sum"], count)
    return {
        "tokens_from_unfinished_fraction": mean(totals["unfinished_tokens"], count),
        "advantage_mean": mean(totals["advantage_sum"], count),
        "advantage_std": spread**0.5,
        "staleness_mean": mean(totals["staleness_sum"], count),
        "staleness_max": totals["staleness_max"],
    }


def _policy_metrics(totals: dict[str, float], num_epochs: int) -> dict[str, float]:
    count = totals["trained_passes"]
    if not count:
        return {}
    metrics = {
        "policy_loss": mean(totals["policy_loss_sum"], count),
        "entropy": mean(totals["entropy_sum"], count),
        "approximate_kl": mean(totals["kl_sum"], count),
        "sequence_masked_fraction": mean(totals["masked_sum"], count),
        "processed_per_trained_token": mean(totals["processed_tokens"], count),
        "padding_fraction": 1.0 - mean(totals["processed_tokens"], totals["padded_tokens"]),
    }
    if totals["gradient_passes"]:
        metrics["policy_token_fraction"] = mean(totals["gradient_passes"], num_epochs * totals["window_tokens"])
    if totals["reference_passes"]:
        metrics["reference_kl"] = mean(totals["reference_kl_sum"], totals["reference_passes"])
    if totals["imitated_tokens"]:
        metrics["positive_lm_loss"] = mean(totals["imitation_sum"], totals["imitated_tokens"])
    if totals["hindsight_passes"]:
        metrics["hindsight_advantage_mean"] = mean(totals["hindsight_advantage_sum"], totals["hindsight_passes"])
    return metrics


def _first_minibatch_metrics(totals: dict[str, float]) -> dict[str, float]:
    count = totals["first_tokens"]
    if not count:
        return {}
    worth = effective_sample_size(totals["first_weight_sum"], totals["first_squared_weight_sum"])
    metrics = {
        "first_ratio_mean": mean(totals["first_ratio_sum"], count),
        "first_ratio_max": totals["first_ratio_max"],
        "first_ratio_min": -totals["first_ratio_negated_min"],
        "first_ratio_max_deviation": totals["first_ratio_deviation_max"],
        "log_prob_diff_mean": mean(totals["first_diff_sum"], count),
        "log_prob_diff_max": totals["first_diff_max"],
        "importance_weight_mean": mean(totals["first_weight_sum"], count),
        "importance_weight_max": totals["first_weight_max"],
        "importance_weight_min": -totals["first_weight_negated_min"],
        "effective_sample_size": mean(worth, count),
    }
    if totals["first_fresh_tokens"]:
        metrics["fresh_log_prob_diff_mean"] = mean(totals["first_fresh_diff_sum"], totals["first_fresh_tokens"])
        metrics["fresh_log_prob_diff_max"] = totals["first_fresh_diff_max"]
    return metrics


def _critic_metrics(totals: dict[str, float]) -> dict[str, float]:
    metrics = {}
    if totals["window_values"]:
        metrics["value_mean"] = mean(totals["value_sum"], totals["window_values"])
    if totals["critic_passes"]:
        metrics["value_loss"] = mean(totals["value_loss_sum"], totals["critic_passes"])
    count = totals["predicted_tokens"]
    if count:
        metrics["finished_value_mean"] = mean(totals["predicted_value_sum"], count)
        metrics["return_mean"] = mean(totals["return_sum"], count)
        explained = _explained(totals, "sum", count)
        if explained is not None:
            metrics["explained_variance"] = explained
        explained = _explained(totals, "by_response", totals["predicted_responses"])
        if explained is not None:
            metrics["explained_variance_by_response"] = explained
    return metrics


def _explained(totals: dict[str, float], weighing: str, count: float) -> float | None:
    """Returns the explained variance by the sums with this ending; None where all returns are equal."""
    spread = variance(totals[f"return_{weighing}"], totals[f"squared_return_{weighing}"], count)
    # Equal returns leave a variance of rounding errors alone, which values cannot explain.
    if spread <= 1e-12 * max(1.0, totals[f"squared_return_{weighing}"] / count):
        return None
    error = variance(totals[f"error_{weighing}"], totals[f"squared_error_{weighing}"], count)
    return explained_variance(error, spread)


def _step_metrics(model: str, reports: list[StepReport]) -> dict[str, float]:
    metrics = {
        f"{model}_steps": float(len(reports)),
        f"{model}_skipped_steps": float(sum(not report.applied for report in reports)),
    }
    norms = torch.tensor([report.norm for report in reports if report.applied], dtype=torch.float64)
    if len(norms):
        metrics[f"{model}_grad_norm"] = float(norms.mean())
    return metrics
