"""Segments: what sequences begin with together is computed once, in an order in which all that stands before is there."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.learner.shared_segments import MIN_SHARED, Segment, shared_segments

PIECES = ["a" * 20, "a" * 7, "b" * 16, "b" * 15, "c"]


def segments_of(
    texts: list[str], starts: list[int] | None = None, apart: list[bool] | None = None
) -> list[list[Segment]]:
    width = max(map(len, texts), default=0)
    tokens = torch.tensor([[ord(letter) for letter in text.ljust(width, ".")] for text in texts], dtype=torch.int64)
    return shared_segments(
        tokens.reshape(len(texts), width),
        torch.tensor(starts or [0] * len(texts), dtype=torch.int64),
        torch.tensor([len(text) for text in texts], dtype=torch.int64),
        torch.tensor(apart or [False] * len(texts), dtype=torch.bool),
    )


@given(
    st.lists(st.lists(st.sampled_from(PIECES), max_size=5).map("".join), max_size=8),
    st.data(),
)
def test_every_position_is_computed_once_after_all_before_it(texts: list[str], data: st.DataObject) -> None:
    apart = [data.draw(st.booleans()) for _ in texts]
    starts = [data.draw(st.integers(0, len(text))) if own else 0 for text, own in zip(texts, apart, strict=True)]
    reached = list(starts)
    for level in segments_of(texts, starts, apart):
        assert level
        rows = [row for segment in level for row in segment.rows]
        assert len(rows) == len(set(rows))
        for segment in level:
            assert {texts[row][: segment.stop] for row in segment.rows} == {texts[segment.rows[0]][: segment.stop]}
            assert len(segment.rows) == 1 or not any(apart[row] for row in segment.rows)
            for row in segment.rows:
                assert reached[row] == segment.start < segment.stop <= len(texts[row])
                reached[row] = segment.stop
    assert reached == [len(text) for text in texts]


def test_a_system_prompt_and_groups() -> None:
    system, one, other = "s" * 30, "1" * 9, "2" * 9
    levels = segments_of([system + one, system + other, system + one, system + other + "answer"])
    assert levels == [
        [Segment((0, 2, 1, 3), 0, 30)],
        [Segment((0, 2), 30, 39), Segment((1,), 30, 39), Segment((3,), 30, 45)],
    ]


def test_equal_sequences_share_however_short_they_are() -> None:
    assert segments_of(["ab", "ab", "ac"]) == [[Segment((0, 1), 0, 2), Segment((2,), 0, 2)]]


def test_short_beginnings_are_not_worth_a_pass() -> None:
    short, long = "x" * (MIN_SHARED - 1), "x" * MIN_SHARED
    assert [len(level) for level in segments_of([short + "1", short + "2"])] == [2]
    assert [len(level) for level in segments_of([long + "1", long + "2"])] == [1, 2]


def test_nothing_to_compute() -> None:
    assert segments_of([]) == []
    assert segments_of(["", ""]) == []


def test_many_windows_of_one_long_response() -> None:
    text = "".join(chr(33 + index % 90) for index in range(16 * 1200))
    levels = segments_of([text[: 16 * count] for count in range(1, 1201)])
    assert len(levels) == 1200
    assert all(len(level) == 1 for level in levels)
