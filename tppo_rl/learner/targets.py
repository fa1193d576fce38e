"""What is computed before the first optimizer step: values, policy advantages, the critic's regression targets."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.micro_batches import micro_batches
from tppo_rl.learner.models import Critic
from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.learner.sharding import same_number_of_passes
from tppo_rl.maths.advantages import boundary_values, extended_gae
from tppo_rl.maths.returns import monte_carlo_returns


class CriticValues(NamedTuple):
    """The critic's values before the update, float32; padding 0."""

    window: torch.Tensor
    """[B, T]: V(s_t) of the states that the window's tokens were sampled in."""
    after: torch.Tensor
    """[B]: V(s_l) of the state after the last token of the sequence, where the episode ended too."""
    response: torch.Tensor
    """[F, R]: V(s_t) over the whole response of the finished fragments."""


@dataclass(frozen=True, eq=False)
class Targets:
    """Everything that the losses regress or weigh by."""

    advantages: torch.Tensor
    """float32 [B, T]: A_t of the window's tokens; padding 0."""
    values: CriticValues | None
    """None without a critic."""
    value_targets: torch.Tensor | None
    """float32 [F, R]: G_t over the response of the finished fragments, padding 0; None without a critic."""
    seconds: float
    """Time that it took."""


def position_values(critic: Critic, batch: TrainBatch, micro_batch_tokens: int) -> torch.Tensor:
    """Returns the critic's V(s) of the state after each position of all sequences, float32 [S] on the CPU."""
    lengths = batch.sequence_lengths
    values = torch.zeros(len(batch.tokens))
    groups = micro_batches(lengths, torch.arange(len(batch)), micro_batch_tokens).rows
    # Not in inference mode: what a sharded critic gathers its weights into is used again where gradients are needed.
    with torch.no_grad():
        for rows in same_number_of_passes(critic, groups):
            predicted = critic(batch.padded(rows, lengths[rows]).to(critic.device)).float().cpu()
            if not len(rows):
                continue
            steps = torch.arange(predicted.shape[1])
            inside = steps < lengths[rows][:, None]
            values[(batch.offsets[rows][:, None] + steps)[inside]] = predicted[inside]
    return values


def critic_values(critic: Critic, batch: TrainBatch, micro_batch_tokens: int) -> CriticValues:
    """Returns the critic's values of all states that the update reads, with one forward pass over each sequence."""
    values = position_values(critic, batch, micro_batch_tokens)
    rows = torch.arange(len(batch))
    return CriticValues(
        window=batch.at_positions(values, batch.window, rows),
        after=values[batch.offsets[1:] - 1],
        response=batch.at_positions(values, batch.response, batch.finished_rows),
    )


def policy_advantages(batch: TrainBatch, values: CriticValues, settings: UpdateSettings) -> torch.Tensor:
    """Returns the extended GAE of the window's tokens, float32 [B, T] (see `tppo_rl.maths.advantages`)."""
    lengths = batch.window.lengths
    at_boundary = boundary_values(values.window, values.after, lengths, batch.finished, settings.boundary_value)
    return extended_gae(
        batch.window.rewards, values.window, at_boundary, lengths, gamma=settings.gamma, lambda_=settings.lambda_
    )


def value_targets(batch: TrainBatch, settings: UpdateSettings) -> torch.Tensor:
    """Returns the Monte-Carlo returns of the finished episodes' tokens, float32 [F, R]."""
    return monte_carlo_returns(batch.response.rewards, batch.response.lengths, gamma=settings.gamma)


def estimate_targets(critic: Critic, batch: TrainBatch, settings: UpdateSettings) -> Targets:
    """Returns all targets of Truncated PPO: critic values, extended GAE, Monte-Carlo returns."""
    start = time.perf_counter()
    values = critic_values(critic, batch, settings.micro_batch_tokens)
    advantages = policy_advantages(batch, values, settings)
    returns = value_targets(batch, settings)
    return Targets(advantages, values, returns, time.perf_counter() - start)
