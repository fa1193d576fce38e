import numpy as np
import pyarrow as pa
import pytest
from helpers import make_fragment

from tppo_rl.core.fragments import (
    FRAGMENT_SCHEMA,
    NO_VERSION,
    Fragment,
    concatenate_tables,
    fragments_from_table,
    table_from_fragments,
)


def assert_same(left: Fragment, right: Fragment) -> None:
    for name in FRAGMENT_SCHEMA.names:
        np.testing.assert_array_equal(getattr(left, name), getattr(right, name), err_msg=name)


def test_table_round_trip_keeps_every_field() -> None:
    fragments = [
        make_fragment(tokens=[3, 4], versions=[7, 8], rewards=[0.0, 1.5], terminated=True, correct=True),
        make_fragment(tokens=[9], context=[], correct=None, window_index=4, episode_id=2**40),
        make_fragment(tokens=[1, 2, 3], sampled=[1, 0, 1], versions=[2, NO_VERSION, 3], truncated=True, correct=False),
    ]
    back = fragments_from_table(table_from_fragments(fragments))
    assert len(back) == 3
    for before, after in zip(fragments, back, strict=True):
        assert_same(before, after)
    assert back[1].correct is None
    assert back[2].correct is False


def test_length_counts_sampled_tokens_only() -> None:
    fragment = make_fragment(tokens=[1, 2, 3, 4], sampled=[0, 1, 0, 1], versions=[NO_VERSION, 5, NO_VERSION, 4])
    assert len(fragment) == 2
    assert fragment.oldest_version == 4
    assert fragment.num_positions == 6


def test_fragments_of_a_table_are_read_only_views() -> None:
    table = table_from_fragments([make_fragment(), make_fragment()])
    first, second = fragments_from_table(table)
    with pytest.raises(ValueError, match="read-only"):
        first.tokens[0] = 1
    assert first.tokens.base is not None
    assert np.shares_memory(first.tokens, table.column("tokens").chunk(0).values.to_numpy())
    np.testing.assert_array_equal(first.tokens, second.tokens)


def test_concatenated_and_sliced_tables_keep_rows_apart() -> None:
    tables = [table_from_fragments([make_fragment(tokens=[k, k], episode_id=k)]) for k in range(5)]
    table = concatenate_tables(tables)
    assert [fragment.episode_id for fragment in fragments_from_table(table)] == list(range(5))
    (third,) = fragments_from_table(table.slice(2, 1))
    np.testing.assert_array_equal(third.tokens, [2, 2])


def test_no_fragments_make_an_empty_table() -> None:
    assert fragments_from_table(concatenate_tables([])) == []
    assert table_from_fragments([]).schema.equals(FRAGMENT_SCHEMA)


def test_tables_of_the_last_release_are_read() -> None:
    fragment = make_fragment(tokens=[3, 4])
    table = table_from_fragments([fragment])
    for lacking in (["answer"], ["left_out_advantages", "answer"]):
        (back,) = fragments_from_table(table.drop_columns(lacking))
        assert_same(fragment, back)


def test_other_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="not a table of fragments"):
        fragments_from_table(pa.table({"tokens": [[1]]}))


@pytest.mark.parametrize(("terminated", "truncated"), [(True, False), (False, True), (False, False)])
def test_an_episode_is_over_when_terminated_or_truncated(terminated: bool, truncated: bool) -> None:
    assert make_fragment(terminated=terminated, truncated=truncated).finished is (terminated or truncated)
