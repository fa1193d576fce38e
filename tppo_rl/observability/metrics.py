"""Values of the metrics in `core.metric_table`, computed from fragments, groups, boundaries and results."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tppo_rl.core.boundaries import ClosedBoundary, window_differences
from tppo_rl.core.fragments import Fragment, accuracy
from tppo_rl.core.metric_table import METRICS
from tppo_rl.core.reward_parts import ALL_FAILURES
from tppo_rl.maths.value import difference_slope
from tppo_rl.rollout.groups import GroupSample
from tppo_rl.rollout.responses import KILLED, Scores


def learner_metrics(learner_result: Mapping[str, Any]) -> dict[str, float]:
    """Picks the table's metrics out of what the learner logged.

    RLlib reports NaN for a metric that was logged in an earlier update but not in this one; it is left out.
    """
    logged = {metric.name: learner_result.get(metric.learner_key or "") for metric in METRICS}
    # The metrics of a policy loss are logged under their final names.
    logged |= {name: value for name, value in learner_result.items() if name.startswith("policy/")}
    return {name: float(value) for name, value in logged.items() if value is not None and not math.isnan(value)}


def episode_metrics(fragments: Iterable[Fragment]) -> dict[str, float]:
    """Metrics of the episodes that ended among the given fragments; if none did, their number alone."""
    finished = [fragment for fragment in fragments if fragment.finished]
    if not finished:
        return {"rollout/finished_episodes": 0.0}
    lengths = [fragment.num_positions - fragment.prompt_length for fragment in finished]
    returns = [float(fragment.context_rewards.sum() + fragment.rewards.sum()) for fragment in finished]
    versions = [int(fragment.versions.max()) - fragment.oldest_version + 1 for fragment in finished]
    right = accuracy(finished)
    return ({} if right is None else {"rollout/accuracy": right}) | {
        "rollout/finished_episodes": float(len(finished)),
        "rollout/return_mean": float(np.mean(returns)),
        "rollout/response_length_mean": float(np.mean(lengths)),
        "rollout/response_length_max": float(np.max(lengths)),
        "rollout/response_length_min": float(np.min(lengths)),
        "rollout/truncated_fraction": float(np.mean([fragment.truncated for fragment in finished])),
        "rollout/windows_per_response": float(np.mean([fragment.window_index + 1 for fragment in finished])),
        "rollout/versions_per_response": float(np.mean(versions)),
    }


def reward_metrics(scores: Scores) -> dict[str, float]:
    """Mean of each part of the reward and of what it logs, and the number of failures by what failed; those that cost a worker
    also by their kind."""
    means = {f"rewards/{name}": total / count for name, (total, count) in scores.sums.items() if count}
    failures = Counter(failure.name for failure in scores.failures)
    killed = (failure for failure in scores.failures if failure.kind in KILLED)
    failures.update(f"{failure.name}.{failure.kind}" for failure in killed)
    return (
        means
        | {f"reward_failures/{name}": float(count) for name, count in failures.items()}
        | {f"reward_failures/{ALL_FAILURES}": float(scores.failed_responses)}
    )


def without_unknown(result: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a result without the table's metrics that have no value in this iteration.

    RLlib reports None for them, and Tune's schedulers would compare that.
    """
    # The parts of the reward have no rows: their names are the user's.
    groups = {metric.name.partition("/")[0] for metric in METRICS} | {"rewards"}
    return {
        key: {name: inner for name, inner in value.items() if inner is not None}
        if key in groups and isinstance(value, Mapping)
        else value
        for key, value in result.items()
    }


def group_metrics(sample: GroupSample) -> dict[str, float]:
    """Metrics of the groups that were sampled for one update."""
    return {
        "rollout/complete_groups": float(sample.num_complete),
        "rollout/zero_variance_fraction": sample.num_without_variance / max(1, sample.num_complete),
        "rollout/sampling_rounds": float(sample.rounds),
    }


def boundary_metrics(boundaries: Sequence[ClosedBoundary]) -> dict[str, float]:
    """Errors of the values at closed boundaries; empty if there are none."""
    if not boundaries:
        return {}
    held = np.array([boundary.values.held for boundary in boundaries])
    bootstrap = np.array([boundary.values.bootstrap for boundary in boundaries])
    means = np.array([boundary.values.window_mean for boundary in boundaries])
    returns = np.array([boundary.return_after for boundary in boundaries])
    metrics = {
        "critic/boundary_error_held": float(np.abs(held - returns).mean()),
        "critic/boundary_error_bootstrap": float(np.abs(bootstrap - returns).mean()),
    }
    if returns.var() > 0:
        metrics["critic/explained_variance_unfinished"] = float(1 - (returns - means).var() / returns.var())
    found = window_differences(boundaries)
    slope = difference_slope(found.before, found.after, found.returns)
    return metrics if slope is None else metrics | {"critic/difference_slope": slope}


def heldout_metrics(evaluation: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The table's metrics of one evaluation."""
    return {
        f"heldout/{name}_{sampling}": float(evaluation[sampling][key])
        for sampling in ("sampled", "greedy")
        for name, key in (("accuracy", "accuracy"), ("response_length", "response_length_mean"))
        if key in evaluation[sampling]
    }
