"""What a critic reads that sees the known answer of each problem (`critic_sees_answer`): the answer, then prompt and response.

The policy never sees it. Values stay those of the states that the policy's tokens were sampled in; only their positions move.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from tppo_rl.learner.batch import SampledTokens, TrainBatch


def with_answers(batch: TrainBatch) -> TrainBatch:
    """Returns the batch with the known answer of each row's problem before its sequence; rows without one stay as they are."""
    lengths = batch.answer_lengths
    before = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    offsets = batch.offsets + before
    tokens = batch.tokens.new_zeros(len(batch.tokens) + len(batch.answers))
    tokens[torch.arange(len(batch.tokens)) + before[1:].repeat_interleave(batch.sequence_lengths)] = batch.tokens
    tokens[torch.arange(len(batch.answers)) + batch.offsets[:-1].repeat_interleave(lengths)] = batch.answers
    return replace(
        batch,
        tokens=tokens,
        offsets=offsets,
        window=_moved(batch.window, lengths),
        response=_moved(batch.response, lengths[batch.finished_rows]),
        all_sampled=_moved(batch.all_sampled, lengths),
        answers=batch.answers[:0],
        answer_lengths=torch.zeros_like(lengths),
    )


def _moved(sampled: SampledTokens, steps: torch.Tensor) -> SampledTokens:
    return replace(sampled, positions=torch.where(sampled.mask, sampled.positions + steps[:, None], 0))
