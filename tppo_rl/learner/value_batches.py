"""What the critic regresses: sampled tokens of some sequences of a batch, and their targets."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import SampledTokens, TrainBatch, batch_from_fragments
from tppo_rl.learner.values import CriticValues
from tppo_rl.maths.advantages import boundary_values
from tppo_rl.maths.returns import lambda_returns, monte_carlo_returns


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


def finished_returns(batch: TrainBatch, options: Options) -> torch.Tensor:
    """Returns the Monte-Carlo returns of the finished episodes' tokens, float32 [F, R]."""
    return monte_carlo_returns(batch.response.rewards, batch.response.lengths, gamma=options.advantages.gamma)


def monte_carlo_batch(batch: TrainBatch, values: CriticValues | None, options: Options) -> ValueBatch:
    """Returns whole responses of finished episodes with their Monte-Carlo returns.

    Args:
        batch: Of which the finished fragments are taken.
        values: Of the same batch; None where values before the update are not known.
        options: gamma.
    """
    old_values = None if values is None else values.response
    return ValueBatch(batch, batch.finished_rows, batch.response, finished_returns(batch, options), old_values)


def lambda_return_batch(batch: TrainBatch, values: CriticValues, options: Options) -> ValueBatch:
    """Returns whole responses of finished episodes with their lambda-returns."""
    targets = lambda_returns(
        batch.response.rewards,
        values.response,
        torch.zeros(len(batch.finished_rows)),
        batch.response.lengths,
        gamma=options.advantages.gamma,
        lambda_=options.critic.critic_lambda,
    )
    return ValueBatch(batch, batch.finished_rows, batch.response, targets, values.response)


def include_unfinished_batch(batch: TrainBatch, values: CriticValues, options: Options) -> ValueBatch:
    """Returns finished responses with Monte-Carlo returns, and windows of unfinished ones with A_t + V(s_t).

    This is what Truncated PPO leaves out; it is there to measure what the decoupling is worth.
    """
    finished = monte_carlo_batch(batch, values, options)
    rows = (~batch.finished & ~batch.hindsight).nonzero()[:, 0]
    window, kept = _rows_of(batch.window, rows), values.window[rows]
    at_boundary = boundary_values(
        values.window, values.after, batch.window.lengths, batch.finished, options.advantages.boundary_value
    )[rows]
    targets = lambda_returns(
        window.rewards,
        kept,
        at_boundary,
        window.lengths,
        gamma=options.advantages.gamma,
        lambda_=options.critic.critic_lambda,
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
    nothing = batch_from_fragments([])
    return ValueBatch(nothing, nothing.finished_rows, nothing.response, nothing.response.rewards)


def _rows_of(sampled: SampledTokens, rows: torch.Tensor) -> SampledTokens:
    return SampledTokens(sampled.lengths[rows], sampled.positions[rows], sampled.tokens[rows], sampled.rewards[rows])


def _stack(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Returns the rows of both, padded on the right with 0 to one width."""
    width = max(first.shape[1], second.shape[1])
    return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (first, second)])
