from __future__ import annotations

import numpy as np
import torch
from learner_helpers import make_fragment, make_fragments

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment, fragments_from_table, table_from_fragments
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import SingleLearner
from tppo_rl.learner.targets import Estimates, default_stages
from tppo_rl.learner.value_batches import ValueBatch
from tppo_rl.learner.value_buffer import ValueBuffer


def episode(number: int, *, earlier: int = 4, tokens: int = 6) -> Fragment:
    return make_fragment(
        np.random.default_rng(number), episode_id=number, earlier=earlier, tokens=tokens, finished=True
    )


def test_episodes_are_held_until_the_batch_is_full() -> None:
    buffer = ValueBuffer(25, SingleLearner())
    unfinished = make_fragment(np.random.default_rng(9), episode_id=9)
    assert buffer.exchange([episode(0), unfinished]) == []
    assert buffer.exchange([episode(1)]) == [], "20 response tokens, earlier windows included"
    assert [fragment.episode_id for fragment in buffer.exchange([episode(2)])] == [0, 1, 2]
    assert buffer.exchange([]) == []


def test_held_episodes_do_not_keep_the_table_alive() -> None:
    (row,) = fragments_from_table(table_from_fragments([episode(0)]))
    buffer = ValueBuffer(25, SingleLearner())
    buffer.exchange([row])
    held = fragments_from_table(buffer.table())
    (kept,) = buffer._held
    assert not np.shares_memory(kept.tokens, row.tokens)
    assert np.array_equal(held[0].tokens, row.tokens)


class TwoLearners(SingleLearner):
    """The second of two learners, of which the first holds `other` tokens."""

    rank, size = 1, 2

    def __init__(self, other: int) -> None:
        self.other = other

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.add_(self.other)


def test_learners_release_together() -> None:
    buffer = ValueBuffer(10, TwoLearners(9))
    assert buffer.exchange([episode(0)]) == [], "19 of 20 tokens"
    buffer = ValueBuffer(10, TwoLearners(20))
    assert buffer.exchange([]) == []
    assert len(ValueBuffer(10, TwoLearners(10)).exchange([episode(0)])) == 1


def test_a_checkpoint_is_shared_out_again() -> None:
    table = table_from_fragments([episode(number) for number in range(5)])
    alone = ValueBuffer(100, SingleLearner())
    alone.hold(table)
    assert alone.table().equals(table)
    second = ValueBuffer(100, TwoLearners(0))
    second.hold(table)
    assert second.table()["episode_id"].to_pylist() == [1, 3]


def test_pipeline_holds_finished_episodes_with_their_returns() -> None:
    options = Options.of(value_batch_tokens=20, gamma=0.9)
    stage = default_stages(options, value_buffer=ValueBuffer(20, SingleLearner()))["value_batch"]

    def released(fragments: list[Fragment]) -> ValueBatch:
        estimates = Estimates(batch_from_fragments(fragments), fragments)
        stage(estimates, None)  # type: ignore[arg-type]
        assert estimates.value_batch is not None
        return estimates.value_batch

    assert len(released([episode(0)]).rows) == 0
    batch = released([episode(1), *make_fragments(3, finished=False)])
    expected = batch_from_fragments([episode(0), episode(1)])
    assert torch.equal(batch.tokens.tokens, expected.response.tokens)
    reward = float(expected.response.rewards[0, -1])
    torch.testing.assert_close(batch.targets[0], torch.tensor([reward * 0.9**k for k in range(9, -1, -1)]))
