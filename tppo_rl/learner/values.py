"""What the critic says of the states of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.micro_batches import micro_batches
from tppo_rl.learner.models import Critic
from tppo_rl.learner.packing import model_input
from tppo_rl.learner.sharding import same_number_of_passes


class CriticValues(NamedTuple):
    """The critic's values before the update, float32; padding 0."""

    window: torch.Tensor
    """[B, T]: V(s_t) of the states that the window's tokens were sampled in."""
    after: torch.Tensor
    """[B]: V(s_l) of the state after the last token of the sequence, where the episode ended too."""
    response: torch.Tensor
    """[F, R]: V(s_t) over the whole response of the finished fragments."""


def position_values(
    critic: Critic, batch: TrainBatch, micro_batch_tokens: int, *, packing: bool = False
) -> torch.Tensor:
    """Returns the critic's V(s) of the state after each position of all sequences, float32 [S] on the CPU.

    Sequences that are trained in hindsight need none; theirs are 0.
    """
    lengths = batch.sequence_lengths
    values = torch.zeros(len(batch.tokens))
    groups = micro_batches(lengths, _first_time(batch), micro_batch_tokens, packing=packing).rows
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
    groups = micro_batches(missing, _first_time(batch), micro_batch_tokens, contexts=contexts.lengths).rows
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


def _first_time(batch: TrainBatch) -> torch.Tensor:
    """int64: sequences that are not trained in hindsight."""
    return (~batch.hindsight).nonzero()[:, 0]


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
