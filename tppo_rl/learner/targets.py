"""What is computed before the first optimizer step: values, policy advantages, the critic's regression targets."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from tppo_rl.learner.batch import SampledTokens, TrainBatch, batch_from_fragments, last_positions
from tppo_rl.learner.collective import Collective, SingleLearner
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.micro_batches import micro_batches
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.packing import model_input
from tppo_rl.learner.settings import LENGTH_ADAPTIVE, UpdateSettings
from tppo_rl.learner.sharding import same_number_of_passes
from tppo_rl.maths import divergence
from tppo_rl.maths.advantages import (
    boundary_values,
    extended_gae,
    generalised_advantages,
    hindsight_advantages,
    length_adaptive_lambda,
)
from tppo_rl.maths.group_advantages import group_relative_advantages
from tppo_rl.maths.normalisation import group_moments, normalise
from tppo_rl.maths.returns import lambda_returns, monte_carlo_returns


class CriticValues(NamedTuple):
    """The critic's values before the update, float32; padding 0."""

    window: torch.Tensor
    """[B, T]: V(s_t) of the states that the window's tokens were sampled in."""
    after: torch.Tensor
    """[B]: V(s_l) of the state after the last token of the sequence, where the episode ended too."""
    response: torch.Tensor
    """[F, R]: V(s_t) over the whole response of the finished fragments."""


@dataclass(frozen=True, eq=False)
class ValueBatch:
    """What the critic regresses: sampled tokens of some sequences of a batch, and their targets."""

    batch: TrainBatch
    rows: torch.Tensor
    """int64 [F]: sequence of each row of `tokens`."""
    tokens: SampledTokens
    """[F, R]."""
    targets: torch.Tensor
    """float32 [F, R]; padding 0."""
    old_values: torch.Tensor | None = None
    """float32 [F, R]: V(s_t) before the update, for the value clip; padding 0."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Everything that the losses regress or weigh by."""

    advantages: torch.Tensor
    """float32 [B, T]: A_t of the window's tokens; padding 0."""
    values: CriticValues | None = None
    """None without a critic."""
    value_batch: ValueBatch | None = None
    """None without a critic."""
    reference_log_probs: torch.Tensor | None = None
    """float32 [B, T], nats: the reference model's log-prob of the window's tokens; None without a KL term in the loss."""
    seconds: float = 0.0
    """Time that it took."""


def position_values(
    critic: Critic, batch: TrainBatch, micro_batch_tokens: int, *, packing: bool = False
) -> torch.Tensor:
    """Returns the critic's V(s) of the state after each position of all sequences, float32 [S] on the CPU."""
    lengths = batch.sequence_lengths
    values = torch.zeros(len(batch.tokens))
    groups = micro_batches(lengths, torch.arange(len(batch)), micro_batch_tokens, packing=packing).rows
    # Not in inference mode: what a sharded critic gathers its weights into is used again where gradients are needed.
    with torch.no_grad():
        for rows in same_number_of_passes(critic, groups):
            inputs = model_input(batch, rows, lengths[rows], critic.device, packing=packing)
            within = torch.arange(len(rows)).repeat_interleave(lengths[rows])
            positions = torch.cat([torch.zeros(0, dtype=torch.int64), *map(torch.arange, lengths[rows].tolist())])
            predicted = critic(inputs.input_ids, inputs.position_ids)[inputs.places(within, positions)]
            values[batch.offsets[rows][within] + positions] = predicted.float().cpu()
    return values


def position_values_after_contexts(
    critic: Critic, batch: TrainBatch, micro_batch_tokens: int, cache: ContextCache
) -> torch.Tensor:
    """Returns what `position_values` does, computed after the contexts that the cache has; it takes what is new.

    Values of positions before a window that the cache has are those of the update that trained them.
    """
    lengths, contexts = batch.sequence_lengths, cache.contexts(batch)
    values = [
        torch.cat([known, torch.zeros(int(length) - len(known))])
        for known, length in zip(cache.values(batch, contexts), lengths, strict=True)
    ]
    missing = lengths - contexts.lengths
    groups = micro_batches(missing, torch.arange(len(batch)), micro_batch_tokens, contexts=contexts.lengths).rows
    with torch.no_grad():
        for rows in same_number_of_passes(critic, groups):
            inputs = contexts.model_input(batch, rows, lengths[rows], critic.device, record=True)
            predicted = critic(**inputs.of_model()).float().cpu()
            for row, of_row in zip(rows.tolist(), predicted, strict=bool(len(rows))):
                values[row][int(contexts.lengths[row]) :] = of_row[: int(missing[row])]
            if len(rows):
                cache.keep(batch, rows, contexts, inputs, values)
    cache.drop_finished(batch)
    return torch.cat(values) if values else torch.zeros(0)


def critic_values(
    critic: Critic,
    batch: TrainBatch,
    micro_batch_tokens: int,
    *,
    packing: bool = False,
    cache: ContextCache | None = None,
) -> CriticValues:
    """Returns the critic's values of all states that the update reads, with one forward pass over each sequence.

    Args:
        critic: See `Critic`.
        batch: B sequences.
        micro_batch_tokens: Most tokens in one forward pass, padding included.
        packing: Whether the sequences of a forward pass stand in one row without padding.
        cache: Of the critic; spares the contexts that it has.
    """
    if cache is None:
        values = position_values(critic, batch, micro_batch_tokens, packing=packing)
    else:
        values = position_values_after_contexts(critic, batch, micro_batch_tokens, cache)
    rows = torch.arange(len(batch))
    return CriticValues(
        window=batch.at_positions(values, batch.window, rows),
        after=values[batch.offsets[1:] - 1],
        response=batch.at_positions(values, batch.response, batch.finished_rows),
    )


@torch.no_grad()
def sampled_log_probs(
    policy: Policy,
    batch: TrainBatch,
    sampled: SampledTokens,
    *,
    temperature: float,
    micro_batch_tokens: int,
    packing: bool = False,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the policy's log-prob of sampled tokens, float32 [B, T] on the CPU, nats; padding 0.

    Args:
        policy: Any language model over the same vocabulary: the policy itself, or a reference.
        batch: B sequences.
        sampled: [B, T], `batch.window` or `batch.all_sampled`.
        temperature: Sampling temperature.
        micro_batch_tokens: Most tokens in one forward pass, padding included.
        packing: Whether the sequences of a forward pass stand in one row without padding.
        rows: int64 [N], sequences to compute; those of the others stay 0. None computes all.
    """
    log_probs = torch.zeros(sampled.tokens.shape)
    wanted = torch.arange(len(batch)) if rows is None else rows
    # Nothing after the state that predicts a sequence's last sampled token is needed.
    lengths = last_positions(sampled)
    groups = micro_batches(lengths, wanted, micro_batch_tokens, packing=packing).rows
    for group in same_number_of_passes(policy, groups):
        mask = sampled.mask[group]
        within, columns = mask.nonzero(as_tuple=True)
        inputs = model_input(batch, group, lengths[group], policy.device, packing=packing)
        predicted = policy(
            inputs.input_ids,
            *inputs.places(within, sampled.positions[group][mask]),
            sampled.tokens[group][mask].to(policy.device),
            temperature=temperature,
            position_ids=inputs.position_ids,
        ).log_probs
        log_probs[group[within], columns] = predicted.float().cpu()
    return log_probs


def with_kl_rewards(batch: TrainBatch, policy: Policy, reference: Policy, settings: UpdateSettings) -> TrainBatch:
    """Returns the batch with kl_coef * KL(policy || reference) of each sampled token taken off its reward.

    The policy is that before the update, so earlier windows of a response are judged as the critic sees them now.
    """
    policy_log_probs, reference_log_probs = (
        sampled_log_probs(
            model,
            batch,
            batch.all_sampled,
            temperature=settings.temperature,
            micro_batch_tokens=settings.micro_batch_tokens,
            packing=settings.packing,
        )
        for model in (policy, reference)
    )
    estimator = getattr(divergence, settings.kl_estimator)
    mask = batch.all_sampled.mask
    penalties = torch.zeros(len(batch.tokens))
    places = (batch.offsets[:-1, None] + batch.all_sampled.positions)[mask]
    penalties[places] = settings.kl_coef * estimator(reference_log_probs, policy_log_probs)[mask]
    rows = torch.arange(len(batch))
    return replace(
        batch,
        window=_minus(batch.window, batch.at_positions(penalties, batch.window, rows)),
        response=_minus(batch.response, batch.at_positions(penalties, batch.response, batch.finished_rows)),
        all_sampled=_minus(batch.all_sampled, batch.at_positions(penalties, batch.all_sampled, rows)),
    )


def policy_lambda(batch: TrainBatch, settings: UpdateSettings) -> float | torch.Tensor:
    """Returns lambda of the policy's advantages: a number, or float32 [B] where it depends on the response's length."""
    if settings.lambda_ == LENGTH_ADAPTIVE:
        return length_adaptive_lambda(batch.all_sampled.lengths, alpha=settings.lambda_alpha)
    return float(settings.lambda_)


def extended_advantages(batch: TrainBatch, values: CriticValues, settings: UpdateSettings) -> torch.Tensor:
    """Returns the extended GAE of the window's tokens, float32 [B, T] (see `tppo_rl.maths.advantages`).

    Those of unfinished windows count `unfinished_advantage_scale`.
    Windows in hindsight get what their first advantages would have been more with the true return at the boundary.
    """
    window, lambda_ = batch.window, policy_lambda(batch, settings)
    at_boundary = boundary_values(values.window, values.after, window.lengths, batch.finished, settings.boundary_value)
    tail_corrected = ~batch.finished if settings.boundary_value == "tail_corrected" else None
    advantages = extended_gae(
        window.rewards,
        values.window,
        at_boundary,
        window.lengths,
        gamma=settings.gamma,
        lambda_=lambda_,
        tail_corrected=tail_corrected,
    )
    if settings.unfinished_advantage_scale != 1:
        scales = torch.where(batch.finished, 1.0, settings.unfinished_advantage_scale)
        advantages = advantages * scales[:, None]
    if not batch.hindsight.any():
        return advantages
    corrections = hindsight_advantages(
        batch.residuals,
        torch.zeros_like(batch.residuals),
        window.lengths,
        window.tokens.shape[1],
        gamma=settings.gamma,
        lambda_=lambda_,
        tail_corrected=tail_corrected,
    )
    return torch.where(batch.hindsight[:, None], corrections, advantages)


def plain_advantages(batch: TrainBatch, values: CriticValues, settings: UpdateSettings) -> torch.Tensor:
    """Returns the GAE of whole episodes, float32 [B, T].

    Raises:
        ValueError: a fragment is unfinished, or is not its whole episode.
    """
    _require_whole_episodes(batch, "gae")
    return generalised_advantages(
        batch.window.rewards,
        values.window,
        batch.window.lengths,
        gamma=settings.gamma,
        lambda_=policy_lambda(batch, settings),
    )


def group_advantages(batch: TrainBatch, settings: UpdateSettings) -> torch.Tensor:
    """Returns each response's group-relative advantage on all of its tokens, float32 [B, T]; padding 0.

    Raises:
        ValueError: as for `plain_advantages`.
    """
    _require_whole_episodes(batch, "group_relative")
    groups = batch.groups.unique(return_inverse=True)[1]
    relative = group_relative_advantages(batch.window.rewards.sum(dim=1), groups, scale=settings.group_scale)
    return torch.where(batch.window.mask, relative[:, None], 0.0)


def _require_whole_episodes(batch: TrainBatch, estimator: str) -> None:
    if not bool(batch.finished.all()) or not torch.equal(batch.window.lengths, batch.all_sampled.lengths):
        raise ValueError(
            f"advantage_estimator={estimator!r}: a fragment is not a whole episode; train with window_length=None, or with "
            "advantage_estimator='egae'"
        )


def normalised_advantages(
    batch: TrainBatch, advantages: torch.Tensor, settings: UpdateSettings, collective: Collective | None = None
) -> torch.Tensor:
    """Returns advantages [B, T] with unit spread over the batch of all learners, or over each group.

    Groups are those of this learner's share; the host gives all responses to a prompt to one learner.
    """
    if settings.advantage_normalisation == "none":
        return advantages
    per_group = settings.advantage_normalisation_scope == "group"
    groups = batch.groups.unique(return_inverse=True)[1] if per_group else torch.zeros_like(batch.groups)
    num_groups = int(groups.max()) + 1 if per_group and len(batch) else 1
    moments = group_moments(advantages, batch.window.mask, groups, num_groups)
    if not per_group:
        moments = (collective or SingleLearner()).sum_(moments)
    centre = settings.advantage_normalisation == "whiten"
    return normalise(advantages, batch.window.mask, groups, moments, centre=centre)


def finished_returns(batch: TrainBatch, settings: UpdateSettings) -> torch.Tensor:
    """Returns the Monte-Carlo returns of the finished episodes' tokens, float32 [F, R]."""
    return monte_carlo_returns(batch.response.rewards, batch.response.lengths, gamma=settings.gamma)


def monte_carlo_batch(batch: TrainBatch, values: CriticValues | None, settings: UpdateSettings) -> ValueBatch:
    """Returns whole responses of finished episodes with their Monte-Carlo returns.

    Args:
        batch: Of which the finished fragments are taken.
        values: Of the same batch; None where values before the update are not known.
        settings: gamma.
    """
    old_values = None if values is None else values.response
    return ValueBatch(batch, batch.finished_rows, batch.response, finished_returns(batch, settings), old_values)


def lambda_return_batch(batch: TrainBatch, values: CriticValues, settings: UpdateSettings) -> ValueBatch:
    """Returns whole responses of finished episodes with their lambda-returns."""
    targets = lambda_returns(
        batch.response.rewards,
        values.response,
        torch.zeros(len(batch.finished_rows)),
        batch.response.lengths,
        gamma=settings.gamma,
        lambda_=settings.critic_lambda,
    )
    return ValueBatch(batch, batch.finished_rows, batch.response, targets, values.response)


def also_truncated_batch(batch: TrainBatch, values: CriticValues, settings: UpdateSettings) -> ValueBatch:
    """Returns finished responses with Monte-Carlo returns, and windows of unfinished ones with A_t + V(s_t).

    This is what Truncated PPO leaves out; it is there to measure what the decoupling is worth.
    """
    finished = monte_carlo_batch(batch, values, settings)
    rows = (~batch.finished & ~batch.hindsight).nonzero()[:, 0]
    window, kept = _rows_of(batch.window, rows), values.window[rows]
    at_boundary = boundary_values(
        values.window, values.after, batch.window.lengths, batch.finished, settings.boundary_value
    )[rows]
    targets = lambda_returns(
        window.rewards, kept, at_boundary, window.lengths, gamma=settings.gamma, lambda_=settings.critic_lambda
    )
    assert finished.old_values is not None
    return ValueBatch(
        batch,
        torch.cat([finished.rows, rows]),
        SampledTokens(
            lengths=torch.cat([finished.tokens.lengths, window.lengths]),
            positions=_stack(finished.tokens.positions, window.positions),
            tokens=_stack(finished.tokens.tokens, window.tokens),
            rewards=_stack(finished.tokens.rewards, window.rewards),
        ),
        _stack(finished.targets, targets),
        _stack(finished.old_values, kept),
    )


def empty_value_batch() -> ValueBatch:
    """Returns a value batch of nothing."""
    return monte_carlo_batch(batch_from_fragments([]), None, UpdateSettings())


def estimate_targets(
    critic: Critic,
    batch: TrainBatch,
    settings: UpdateSettings,
    collective: Collective | None = None,
    cache: ContextCache | None = None,
) -> Targets:
    """Returns the targets of an update with a critic and without a reference model, as the learner pipeline does."""
    start = time.perf_counter()
    values = critic_values(critic, batch, settings.micro_batch_tokens, packing=settings.packing, cache=cache)
    estimator = plain_advantages if settings.advantage_estimator == "gae" else extended_advantages
    advantages = normalised_advantages(batch, estimator(batch, values, settings), settings, collective)
    value_batch = VALUE_BATCHES[settings.critic_targets](batch, values, settings)
    return Targets(advantages, values, value_batch, seconds=time.perf_counter() - start)


VALUE_BATCHES = {
    "monte_carlo": monte_carlo_batch,
    "lambda_returns": lambda_return_batch,
    "also_truncated": also_truncated_batch,
}
"""Makers of the value batch by `critic_targets`."""


def _minus(sampled: SampledTokens, penalties: torch.Tensor) -> SampledTokens:
    return replace(sampled, rewards=sampled.rewards - penalties)


def _rows_of(sampled: SampledTokens, rows: torch.Tensor) -> SampledTokens:
    return SampledTokens(sampled.lengths[rows], sampled.positions[rows], sampled.tokens[rows], sampled.rewards[rows])


def _stack(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the rows of both, padded on the right with 0 to one width."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (first, second)])
