"""Fragments as tensors: whole sequences back to back, and tables of the sampled tokens in them.

A fragment's sequence is its context followed by its tokens. Two sets of its sampled tokens matter: the window's for the
policy loss and, if the episode is finished, the whole response's for the value loss. Environment text between turns is
in the sequence but in neither set. So the state after a sampled token is the state before the NEXT sampled token, or
the end of the sequence.

A fragment that is trained a second time in hindsight is never finished: the policy alone trains on it. Such windows of one
episode that follow each other are one sequence (`hindsight.joined`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.hindsight import Row, joined


@dataclass(frozen=True, eq=False)
class SampledTokens:
    """Sampled tokens of some sequences, one row for each sequence, padded on the right with 0."""

    lengths: torch.Tensor
    """int64 [B]: sampled tokens in the row, at least 1."""
    positions: torch.Tensor
    """int64 [B, T]: position of the state that predicts the token, in its sequence: the token's own position - 1."""
    tokens: torch.Tensor
    """int64 [B, T]: the sampled tokens."""
    rewards: torch.Tensor
    """float32 [B, T]: reward received on each token."""

    @property
    def mask(self) -> torch.Tensor:
        """bool [B, T]: True on tokens, False on padding."""
        return torch.arange(self.positions.shape[1]) < self.lengths[:, None]


def last_positions(sampled: SampledTokens) -> torch.Tensor:
    """Returns each sequence's number of positions up to the state that predicts its last sampled token, int64 [B]."""
    return sampled.positions.amax(dim=1) + 1 if len(sampled.lengths) else sampled.lengths


@dataclass(frozen=True, eq=False)
class TrainBatch:
    """One learner's shard of an update, on the CPU: B fragments, F of them finished; B and F may be 0."""

    tokens: torch.Tensor
    """int64 [S]: all sequences back to back."""
    offsets: torch.Tensor
    """int64 [B + 1]: sequence b is `tokens[offsets[b] : offsets[b + 1]]`."""
    window: SampledTokens
    """[B, T]: the window's sampled tokens, for the policy loss."""
    behavior_log_probs: torch.Tensor
    """float32 [B, T]: log-prob (nats) of each window token from the engine that sampled it; padding 0."""
    versions: torch.Tensor
    """int64 [B, T]: policy version that sampled each window token; padding 0."""
    finished: torch.Tensor
    """bool [B]: whether the window's last token ended the episode (terminated or truncated)."""
    finished_rows: torch.Tensor
    """int64 [F]: rows of the finished fragments."""
    response: SampledTokens
    """[F, R]: all sampled tokens of the finished episodes, for the value loss. Row f belongs to sequence
    `finished_rows[f]`."""
    correct: torch.Tensor
    """bool [B]: whether the fragment finished its episode and the environment found the response right."""
    hindsight: torch.Tensor
    """bool [B]: whether the row is trained a second time, on `residuals`."""
    residuals: torch.Tensor
    """float32 [B, T]: return after the token's window minus the boundary value that was used; 0 if not in hindsight."""
    left_out: torch.Tensor
    """float32 [B, T]: what the first training of the token left out of its advantage; 0 if not in hindsight."""
    remaining: torch.Tensor
    """int64 [B, T]: sampled tokens from this one to the end of its window; 0 if not in hindsight."""
    sampled_at_end: torch.Tensor
    """int64 [B, T]: sampled tokens of the response up to the end of the token's window; 0 if not in hindsight."""
    all_sampled: SampledTokens
    """[B, Q]: sampled tokens of the whole sequence, earlier windows included."""
    answers: torch.Tensor
    """int64 [A]: known answers of the rows' problems, back to back, for a critic that sees them (`known_answers`)."""
    answer_lengths: torch.Tensor
    """int64 [B]: tokens of each row's known answer, which may be 0."""
    groups: torch.Tensor
    """int64 [B]: prompt index; the responses to one prompt are a group."""
    episode_ids: np.ndarray
    """int64 [B]: episode of each fragment."""
    window_indices: np.ndarray
    """int32 [B]: index of each window in its episode."""

    def __len__(self) -> int:
        return len(self.finished)

    @property
    def sequence_lengths(self) -> torch.Tensor:
        """int64 [B]: number of positions of each sequence."""
        return self.offsets.diff()

    def at_positions(self, per_position: torch.Tensor, sampled: SampledTokens, rows: torch.Tensor) -> torch.Tensor:
        """Reads a quantity at the states that predict sampled tokens.

        Args:
            per_position: [S], one value for each position of all sequences, in the order of `tokens`.
            sampled: B' rows of sampled tokens.
            rows: int64 [B'], the sequence of each row of `sampled`.

        Returns:
            [B', T], 0 in the padding.
        """
        if not len(rows):
            return per_position.new_zeros(sampled.positions.shape)
        values = per_position[self.offsets[rows][:, None] + sampled.positions]
        return torch.where(sampled.mask, values, 0)

    def padded(self, rows: torch.Tensor, lengths: torch.Tensor, starts: torch.Tensor | None = None) -> torch.Tensor:
        """Returns `lengths[i]` tokens of sequence `rows[i]` from position `starts[i]` on, int64 [len(rows), max(lengths)].

        Without `starts` all rows start at the beginning of their sequence.

        Padding on the right holds token 0, which every vocabulary has: under a causal mask it changes nothing. Without
        rows the result is one token of padding, [1, 1], for a pass that is made only because other learners make it.
        """
        if not len(rows):
            return self.tokens.new_zeros(1, 1)
        steps = torch.arange(int(lengths.max()))
        inside = steps < lengths[:, None]
        first = self.offsets[rows] if starts is None else self.offsets[rows] + starts
        return torch.where(inside, self.tokens[(first[:, None] + steps) * inside], 0)


def batch_from_fragments(fragments: Sequence[Fragment]) -> TrainBatch:
    """Returns the train batch of the fragments, in their order; windows in hindsight that follow each other are one row.

    Raises:
        ValueError: a fragment without a sampled token, without a context to predict its first token from, or with a
            reward on a token that no policy sampled.
    """
    rows = joined(fragments)
    fragments = [row.fragment for row in rows]
    lengths = np.array([fragment.num_positions for fragment in fragments], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    tokens = _interleave(fragments, "context", "tokens", np.int64)
    sampled = _interleave(fragments, "context_sampled", "sampled", np.uint8).astype(bool)
    rewards = _interleave(fragments, "context_rewards", "rewards", np.float32)
    in_window = np.repeat(
        np.tile(np.array([False, True]), len(fragments)),
        [part for fragment in fragments for part in (len(fragment.context), len(fragment.tokens))],
    )
    finished = np.array([fragment.finished for fragment in fragments], bool)
    _check_fragments(fragments, offsets, sampled, rewards)

    window_positions = np.flatnonzero(sampled & in_window)
    columns = _Columns(window_positions, offsets, np.arange(len(fragments)))
    finished_rows = np.flatnonzero(finished)
    response_positions = np.flatnonzero(sampled & np.repeat(finished, lengths))
    in_table = np.concatenate([f.sampled.astype(bool) for f in fragments]) if fragments else np.zeros(0, bool)
    return TrainBatch(
        tokens=torch.from_numpy(tokens),
        offsets=torch.from_numpy(offsets),
        window=columns.sampled_tokens(tokens, rewards),
        behavior_log_probs=columns.pad(_concatenate(fragments, "behavior_log_probs", np.float32)[in_table]),
        versions=columns.pad(_concatenate(fragments, "versions", np.int64)[in_table]),
        finished=torch.from_numpy(finished),
        finished_rows=torch.from_numpy(finished_rows),
        response=_Columns(response_positions, offsets, finished_rows).sampled_tokens(tokens, rewards),
        correct=torch.tensor([f.finished and bool(f.correct) for f in fragments], dtype=torch.bool),
        hindsight=torch.tensor([bool(row.due) for row in rows], dtype=torch.bool),
        residuals=columns.pad(_per_token(rows, _residuals, np.float32)),
        left_out=columns.pad(_per_token(rows, _left_out, np.float32)),
        remaining=columns.pad(_per_token(rows, _remaining, np.int64)),
        sampled_at_end=columns.pad(_per_token(rows, _sampled_at_end, np.int64)),
        all_sampled=_Columns(np.flatnonzero(sampled), offsets, np.arange(len(fragments))).sampled_tokens(
            tokens, rewards
        ),
        answers=torch.from_numpy(_concatenate(fragments, "answer", np.int64)),
        answer_lengths=torch.tensor([len(fragment.answer) for fragment in fragments], dtype=torch.int64),
        groups=torch.tensor([f.prompt_index for f in fragments], dtype=torch.int64),
        episode_ids=np.array([fragment.episode_id for fragment in fragments], np.int64),
        window_indices=np.array([fragment.window_index for fragment in fragments], np.int32),
    )


class _Columns:
    """Turns values at chosen flat positions into padded rows, one for each sequence of `rows`."""

    def __init__(self, flat_positions: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> None:
        sequence = np.searchsorted(offsets, flat_positions, side="right") - 1
        self._flat_positions = flat_positions
        self._in_sequence = flat_positions - offsets[sequence]
        self._lengths = np.bincount(sequence, minlength=len(offsets) - 1)[rows].astype(np.int64)
        self._row = np.repeat(np.arange(len(rows)), self._lengths)
        starts = np.cumsum(self._lengths) - self._lengths
        self._column = np.arange(len(flat_positions)) - starts[self._row]

    def pad(self, values: np.ndarray) -> torch.Tensor:
        padded = np.zeros((len(self._lengths), int(self._lengths.max(initial=0))), values.dtype)
        padded[self._row, self._column] = values
        return torch.from_numpy(padded)

    def sampled_tokens(self, tokens: np.ndarray, rewards: np.ndarray) -> SampledTokens:
        return SampledTokens(
            lengths=torch.from_numpy(self._lengths),
            positions=self.pad(self._in_sequence - 1),
            tokens=self.pad(tokens[self._flat_positions]),
            rewards=self.pad(rewards[self._flat_positions]),
        )


def _per_token(rows: Sequence[Row], of_row: Callable[[Row], np.ndarray], dtype: type) -> np.ndarray:
    """Returns a quantity of the windows in hindsight at the window tokens of all rows, back to back; 0 elsewhere."""
    parts = [of_row(row) if row.due else np.zeros(len(row.fragment)) for row in rows]
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(0, dtype)


def _residuals(row: Row) -> np.ndarray:
    return np.repeat([window.residual for window in row.due], [window.length for window in row.due])


def _left_out(row: Row) -> np.ndarray:
    return np.concatenate([window.left_out for window in row.due])


def _remaining(row: Row) -> np.ndarray:
    return np.concatenate([np.arange(window.length, 0, -1) for window in row.due])


def _sampled_at_end(row: Row) -> np.ndarray:
    lengths = [window.length for window in row.due]
    return np.repeat(np.count_nonzero(row.fragment.context_sampled) + np.cumsum(lengths), lengths)


def _concatenate(fragments: Sequence[Fragment], name: str, dtype: type) -> np.ndarray:
    arrays = [getattr(fragment, name) for fragment in fragments]
    return np.concatenate(arrays).astype(dtype, copy=False) if arrays else np.zeros(0, dtype)


def _interleave(fragments: Sequence[Fragment], context_name: str, name: str, dtype: type) -> np.ndarray:
    arrays = [getattr(fragment, part) for fragment in fragments for part in (context_name, name)]
    return np.concatenate(arrays).astype(dtype) if arrays else np.zeros(0, dtype)


def _check_fragments(
    fragments: Sequence[Fragment], offsets: np.ndarray, sampled: np.ndarray, rewards: np.ndarray
) -> None:
    if any(fragment.finished and fragment.hindsight_residual is not None for fragment in fragments):
        raise ValueError("a fragment in hindsight is finished: only windows before the last have a boundary value")
    if not all(len(fragment) for fragment in fragments):
        raise ValueError("a fragment has no sampled token: emit it together with the tokens that follow")
    if np.any(rewards[~sampled]):
        raise ValueError(
            "a fragment has a reward on a token that no policy sampled: put it on the last sampled token before it"
        )
    if np.any(sampled[offsets[:-1]]):
        raise ValueError("a fragment's first token is sampled, but nothing predicts it: its context needs a prompt")
