from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from learner_helpers import make_fragment, make_fragments

from tppo_rl.core.fragments import NO_VERSION, Fragment, fragments_from_table, table_from_fragments
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments


def two_turns() -> Fragment:
    """Prompt 10 11; first window 12 [13] 14, of which 13 is environment text; second window 15 [16 17] 18."""
    return Fragment(
        episode_id=7,
        prompt_index=3,
        env_runner=0,
        window_index=1,
        prompt_length=2,
        context=np.array([10, 11, 12, 13, 14], np.int32),
        context_sampled=np.array([0, 0, 1, 0, 1], np.uint8),
        context_rewards=np.array([0, 0, 0.25, 0, 0], np.float32),
        tokens=np.array([15, 16, 17, 18], np.int32),
        sampled=np.array([1, 0, 0, 1], np.uint8),
        behavior_log_probs=np.array([-0.5, 0, 0, -2.0], np.float32),
        versions=np.array([4, NO_VERSION, NO_VERSION, 5], np.int32),
        rewards=np.array([0.5, 0, 0, 1.0], np.float32),
        terminated=True,
        truncated=False,
        correct=True,
    )


def test_numbers_worked_by_hand() -> None:
    batch = batch_from_fragments([two_turns()])
    assert batch.tokens.tolist() == [10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert batch.window.tokens.tolist() == [[15, 18]]
    assert batch.window.positions.tolist() == [[4, 7]]
    assert batch.window.rewards.tolist() == [[0.5, 1.0]]
    assert batch.behavior_log_probs.tolist() == [[-0.5, -2.0]]
    assert batch.versions.tolist() == [[4, 5]]
    assert batch.response.tokens.tolist() == [[12, 14, 15, 18]]
    assert batch.response.positions.tolist() == [[1, 3, 4, 7]]
    assert batch.response.rewards.tolist() == [[0.25, 0.0, 0.5, 1.0]]
    assert batch.finished_rows.tolist() == [0]
    assert (batch.episode_ids.tolist(), batch.window_indices.tolist()) == ([7], [1])


def test_every_row_against_its_fragment() -> None:
    fragments = make_fragments(0, 12)
    batch = batch_from_fragments(fragments)
    finished = [index for index, fragment in enumerate(fragments) if fragment.finished]
    assert batch.finished_rows.tolist() == finished
    for row, fragment in enumerate(fragments):
        sequence = np.r_[fragment.context, fragment.tokens]
        in_window = np.flatnonzero(fragment.sampled) + len(fragment.context)
        check_row(batch, batch.window, row, in_window, sequence)
        count = len(in_window)
        assert count == len(fragment) == int(batch.window.lengths[row])
        sampled = fragment.sampled.astype(bool)
        np.testing.assert_array_equal(batch.behavior_log_probs[row, :count], fragment.behavior_log_probs[sampled])
        np.testing.assert_array_equal(batch.versions[row, :count], fragment.versions[sampled])
        assert not batch.behavior_log_probs[row, count:].any()
    for row, index in enumerate(finished):
        fragment = fragments[index]
        positions = np.flatnonzero(np.r_[fragment.context_sampled, fragment.sampled])
        check_row(batch, batch.response, row, positions, np.r_[fragment.context, fragment.tokens])


def check_row(batch: TrainBatch, sampled, row: int, positions: np.ndarray, sequence: np.ndarray) -> None:
    count = len(positions)
    assert int(sampled.lengths[row]) == count
    assert sampled.mask[row].sum() == count
    np.testing.assert_array_equal(sampled.positions[row, :count], positions - 1)
    np.testing.assert_array_equal(sampled.tokens[row, :count], sequence[positions])
    assert not sampled.tokens[row, count:].any()


def test_padded_sequences_and_values_at_positions() -> None:
    batch = batch_from_fragments(make_fragments(1, 5))
    rows = torch.tensor([3, 0])
    lengths = batch.sequence_lengths[rows] - 1
    padded = batch.padded(rows, lengths)
    for row, length, sequence in zip(rows.tolist(), lengths.tolist(), padded, strict=True):
        start = int(batch.offsets[row])
        assert torch.equal(sequence[:length], batch.tokens[start : start + length])
        assert not sequence[length:].any()
    # With the token itself as the quantity, the state before a sampled token reads the token before it.
    read = batch.at_positions(batch.tokens.float(), batch.response, batch.finished_rows)
    for row, index in enumerate(batch.finished_rows.tolist()):
        sequence = batch.tokens[batch.offsets[index] : batch.offsets[index + 1]]
        count = int(batch.response.lengths[row])
        assert torch.equal(read[row, :count], sequence[batch.response.positions[row, :count]].float())
        assert not read[row, count:].any()


def test_table_gives_the_same_batch() -> None:
    fragments = make_fragments(2)
    direct, wired = (
        batch_from_fragments(fragments),
        batch_from_fragments(fragments_from_table(table_from_fragments(fragments))),
    )
    for name in ("tokens", "offsets", "behavior_log_probs", "versions", "finished", "finished_rows"):
        assert torch.equal(getattr(direct, name), getattr(wired, name)), name
    assert torch.equal(direct.response.positions, wired.response.positions)


@pytest.mark.parametrize("fragments", [[], make_fragments(3, 2, finished=False)])
def test_empty_shares(fragments: list[Fragment]) -> None:
    batch = batch_from_fragments(fragments_from_table(table_from_fragments(fragments)))
    assert len(batch) == len(fragments)
    assert len(batch.finished_rows) == 0
    assert batch.response.mask.shape == (0, 0)
    assert batch.at_positions(torch.zeros(len(batch.tokens)), batch.response, batch.finished_rows).shape == (0, 0)


def test_impossible_fragments_are_refused() -> None:
    fragment = make_fragment(np.random.default_rng(0), tokens=3)
    with pytest.raises(ValueError, match="no sampled token"):
        batch_from_fragments([fragment, replace(fragment, sampled=np.zeros(3, np.uint8))])
    with pytest.raises(ValueError, match="reward"):
        batch_from_fragments([replace(two_turns(), rewards=np.array([0, 1, 0, 0], np.float32))])
    bare = replace(
        fragment,
        context=np.zeros(0, np.int32),
        context_sampled=np.zeros(0, np.uint8),
        context_rewards=np.zeros(0, np.float32),
    )
    with pytest.raises(ValueError, match="prompt"):
        batch_from_fragments([bare])
