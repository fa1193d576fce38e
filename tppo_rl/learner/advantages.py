"""The policy's advantages, estimated from fragments and the critic's values.

An estimator is a function `(batch, values, options) -> advantages`. It gets a `TrainBatch` of B fragments whose windows have at
most T sampled tokens, and `CriticValues` (None without a critic), and returns float32 [B, T], padding 0. The estimators of this
file are registered by name (`tppo_rl.core.registry.ADVANTAGES`). Name an estimator of your own by its place,
`advantage_estimator: my_module:my_estimator`."""

from __future__ import annotations

import torch

from tppo_rl.config.options import Options
from tppo_rl.config.sections.advantages import LENGTH_ADAPTIVE
from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.collective import Collective, SingleLearner
from tppo_rl.learner.values import CriticValues
from tppo_rl.maths.advantages import boundary_values, egae, gae, hindsight_advantages, length_adaptive_lambda
from tppo_rl.maths.group_advantages import group_relative_advantages
from tppo_rl.maths.normalization import group_moments, normalize


def policy_lambda(batch: TrainBatch, options: Options) -> float | torch.Tensor:
    """Returns lambda of the policy's advantages: a number, or float32 [B] if it depends on the response's length."""
    if options.advantages.lambda_ == LENGTH_ADAPTIVE:
        return length_adaptive_lambda(batch.all_sampled.lengths, alpha=options.advantages.lambda_alpha)
    return float(options.advantages.lambda_)


def extended_advantages(batch: TrainBatch, values: CriticValues | None, options: Options) -> torch.Tensor:
    """Returns the extended GAE of the window's tokens, float32 [B, T] (see `tppo_rl.maths.advantages`).

    Windows in hindsight get the difference that the true return at the boundary makes to their first advantages, and what the first
    training left out of these.
    """
    assert values is not None, "extended GAE needs a critic"
    window, lambda_ = batch.window, policy_lambda(batch, options)
    at_boundary = boundary_values(
        values.window, values.after, window.lengths, batch.finished, options.advantages.boundary_value
    )
    tail_corrected = ~batch.finished if options.advantages.boundary_value == "tail_corrected" else None
    advantages = egae(
        window.rewards,
        values.window,
        at_boundary,
        window.lengths,
        gamma=options.advantages.gamma,
        lambda_=lambda_,
        tail_corrected=tail_corrected,
    )
    if not batch.hindsight.any():
        return advantages
    if options.advantages.lambda_ == LENGTH_ADAPTIVE:
        # Of every window the lambda that it was trained with first.
        at_end = batch.sampled_at_end.clamp(min=1)
        lambda_ = length_adaptive_lambda(at_end.flatten(), alpha=options.advantages.lambda_alpha).view(at_end.shape)
    corrections = hindsight_advantages(
        batch.residuals,
        batch.remaining,
        gamma=options.advantages.gamma,
        lambda_=lambda_,
        tail_corrected=options.advantages.boundary_value == "tail_corrected",
    )
    return torch.where(batch.hindsight[:, None], corrections + batch.left_out, advantages)


def scale_unfinished(advantages: torch.Tensor, batch: TrainBatch, scale: float) -> torch.Tensor:
    """Returns the advantages, float32 [B, T], with those of unfinished windows multiplied by a factor; in hindsight they stay."""
    if scale == 1:
        return advantages
    return advantages * torch.where(batch.finished | batch.hindsight, 1.0, scale)[:, None]


def plain_advantages(batch: TrainBatch, values: CriticValues | None, options: Options) -> torch.Tensor:
    """Returns the GAE of whole episodes, float32 [B, T].

    Raises:
        ValueError: a fragment is unfinished, or is not its whole episode.
    """
    assert values is not None, "GAE needs a critic"
    _require_whole_episodes(batch, "gae")
    return gae(
        batch.window.rewards,
        values.window,
        batch.window.lengths,
        gamma=options.advantages.gamma,
        lambda_=policy_lambda(batch, options),
    )


def group_advantages(batch: TrainBatch, values: CriticValues | None, options: Options) -> torch.Tensor:
    """Returns each response's group-relative advantage on all of its tokens, float32 [B, T]; padding 0.

    Raises:
        ValueError: as for `plain_advantages`.
    """
    _require_whole_episodes(batch, "group_relative")
    groups = batch.groups.unique(return_inverse=True)[1]
    relative = group_relative_advantages(batch.window.rewards.sum(dim=1), groups, scale=options.advantages.group_scale)
    return torch.where(batch.window.mask, relative[:, None], 0.0)


def _require_whole_episodes(batch: TrainBatch, estimator: str) -> None:
    if not bool(batch.finished.all()) or not torch.equal(batch.window.lengths, batch.all_sampled.lengths):
        raise ValueError(
            f"advantage_estimator={estimator!r}: a fragment is not a whole episode; train with window_length=None, or with "
            "advantage_estimator='egae'"
        )


def normalized_advantages(
    batch: TrainBatch, advantages: torch.Tensor, options: Options, collective: Collective | None = None
) -> torch.Tensor:
    """Returns advantages [B, T] with standard deviation 1 over the batch of all learners, or over each group.

    Windows in hindsight do not count for mean and standard deviation. Theirs are corrections of advantages: they are divided by
    the same standard deviation, and keep their mean.

    Groups are those of this learner's shard; the host gives all responses to a prompt to one learner.
    """
    if options.advantages.advantage_normalization == "none":
        return advantages
    per_group = options.advantages.advantage_normalization_scope == "group"
    groups = batch.groups.unique(return_inverse=True)[1] if per_group else torch.zeros_like(batch.groups)
    num_groups = int(groups.max()) + 1 if per_group and len(batch) else 1
    again = batch.window.mask & batch.hindsight[:, None]
    first_time = batch.window.mask & ~again
    moments = group_moments(advantages, first_time, groups, num_groups)
    if not per_group:
        moments = (collective or SingleLearner()).sum_(moments)
    center = options.advantages.advantage_normalization == "whiten"
    normalized = normalize(advantages, first_time, groups, moments, center=center)
    return normalized + normalize(advantages, again, groups, moments, center=False) if again.any() else normalized
