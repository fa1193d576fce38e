from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import make_fragment

from tppo_rl.core.fragments import Fragment, fragments_from_table, return_after, table_from_fragments
from tppo_rl.learner.hindsight import HindsightBuffer, joined
from tppo_rl.learner.partition import partition


def episode() -> tuple[Fragment, Fragment, Fragment]:
    """Windows of two tokens after a prompt of one; rewards 0.5 on the fourth token and 1 on the last."""
    first = make_fragment(episode_id=3, context=[9], tokens=[1, 2])
    second = make_fragment(episode_id=3, context=[9, 1, 2], tokens=[3, 4], window_index=1, rewards=[0.0, 0.5])
    last = make_fragment(
        episode_id=3,
        context=[9, 1, 2, 3, 4],
        context_sampled=np.array([0, 1, 1, 1, 1], np.uint8),
        context_rewards=np.array([0, 0, 0, 0, 0.5], np.float32),
        tokens=[5, 6],
        rewards=[0.0, 1.0],
        window_index=2,
        terminated=True,
    )
    return first, second, last


def test_windows_become_due_when_their_episode_ends() -> None:
    first, second, last = episode()
    buffer = HindsightBuffer(gamma=0.5)
    buffer.add(first, 0.2)
    buffer.add(second, -0.1)
    assert buffer.drain() == []
    buffer.close(last)
    due = buffer.drain()
    # After the first window: 0.5 * 0.5 + 0.125 * 1; after the second: 0.5 * 1.
    assert [fragment.hindsight_residual for fragment in due] == pytest.approx([0.375 - 0.2, 0.5 + 0.1])
    assert [fragment.window_index for fragment in due] == [0, 1]
    assert buffer.drain() == []
    buffer.close(last)
    assert buffer.drain() == [], "a window is trained in hindsight once"


def test_windows_of_an_episode_that_was_lost_are_not_trained_on_the_return_of_another() -> None:
    first, _, last = episode()
    buffer = HindsightBuffer(gamma=1.0)
    buffer.add(make_fragment(episode_id=3, context=[9], tokens=[8, 8]), 0.0)
    buffer.add(make_fragment(episode_id=3, context=[9, 8, 8], tokens=[8, 8], window_index=1), 0.0)
    buffer.add(first, 0.5)
    buffer.close(last)
    assert [(fragment.window_index, fragment.hindsight_residual) for fragment in buffer.drain()] == [(0, 1.0)]


def test_what_is_due_survives_a_table() -> None:
    first, _, last = episode()
    buffer = HindsightBuffer(gamma=1.0)
    buffer.add(first, 0.5, np.array([0.25, -1.0], np.float32))
    buffer.close(last)
    again = HindsightBuffer(1.0, fragments_from_table(table_from_fragments(buffer.due)))
    (due,) = again.drain()
    assert due.hindsight_residual == 1.0
    assert due.left_out_advantages.tolist() == [0.25, -1.0]


def test_windows_that_wait_do_not_keep_the_table_alive() -> None:
    first, second, last = episode()
    rows = fragments_from_table(table_from_fragments([first, second]))
    buffer = HindsightBuffer(gamma=1.0)
    for row in rows:
        buffer.add(row, 0.0)
    buffer.close(last)
    for row, waited in zip(rows, buffer.drain(), strict=True):
        assert np.array_equal(waited.tokens, row.tokens)
        assert not any(np.shares_memory(getattr(waited, name), getattr(row, name)) for name in ("context", "tokens"))


def test_return_after_counts_sampled_tokens_only() -> None:
    _, _, last = episode()
    spoken = make_fragment(
        context=[9, 1], tokens=[7, 7, 5], sampled=[0, 0, 1], rewards=[0.0, 0.0, 1.0], terminated=True
    )
    assert return_after(spoken, 2, gamma=0.5) == 1.0
    assert return_after(last, 1, gamma=1.0) == 1.5
    assert return_after(last, 7, gamma=1.0) == 0.0


def _due(**changes: object) -> list[Fragment]:
    first, second, _ = episode()
    return [replace(first, hindsight_residual=0.25), replace(second, **({"hindsight_residual": -0.5} | changes))]


def test_windows_that_follow_each_other_are_one_row_in_the_place_of_the_first() -> None:
    other = make_fragment(episode_id=4, context=[7], tokens=[8])
    first, second = _due()
    other_row, row = joined([second, other, first])
    assert other_row.fragment is other
    assert other_row.due == ()
    assert row.fragment.tokens.tolist() == [1, 2, 3, 4]
    assert row.fragment.context.tolist() == [9]
    assert [(due.length, due.residual, due.left_out.tolist()) for due in row.due] == [
        (2, 0.25, [0, 0]),
        (2, -0.5, [0, 0]),
    ]


@pytest.mark.parametrize(
    "changes",
    [
        {"hindsight_residual": None},
        {"episode_id": 5},
        {"context": np.array([9, 1, 7], np.int32)},
        {"context": np.array([9, 1], np.int32), "context_sampled": np.ones(2, np.uint8)},
    ],
)
def test_other_windows_stay_rows_of_their_own(changes: dict[str, object]) -> None:
    rows = joined(_due(**changes))
    assert len(rows) == 2
    assert [(due.length, due.residual) for due in rows[0].due] == [(2, 0.25)]


def test_windows_of_one_response_go_to_one_learner() -> None:
    shares = partition([*_due(), make_fragment(episode_id=9)], 2)
    assert sorted(len(share) for share in shares) == [1, 2]
    assert [fragment.episode_id for fragment in max(shares, key=len)] == [3, 3]


def test_what_waits_for_the_end_of_an_episode_is_kept_without_contexts() -> None:
    context = list(range(100))
    buffer = HindsightBuffer(gamma=1.0)
    buffer.add(make_fragment(episode_id=3, context=context, tokens=[1, 2]), 0.0)
    assert buffer.num_bytes == 2 * 17
    buffer.close(make_fragment(episode_id=3, context=[*context, 1, 2], tokens=[3], window_index=1, terminated=True))
    (due,) = buffer.drain()
    assert due.context.tolist() == context
    assert due.tokens.tolist() == [1, 2]
    assert buffer.num_bytes == 0
