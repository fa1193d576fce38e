"""Windows of whole episodes with what the critic and the estimator said of them, as a run keeps them in `episodes/*.parquet`.

A fragment holds its whole context; the windows of an episode would hold its first tokens again and again. Here the first
window alone holds the prompt, and every window says where in the response it begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from tppo_rl.core.fragments import (
    FRAGMENT_SCHEMA,
    Fragment,
    fragments_from_table,
    table_from_fragments,
    with_added_columns,
)

_FLOAT32_LIST = pa.list_(pa.field("item", pa.float32(), nullable=False))
_MORE = (
    pa.field("start", pa.int32(), nullable=False),
    pa.field("values", _FLOAT32_LIST),
    pa.field("advantages", _FLOAT32_LIST),
    pa.field("boundary_value", pa.float32()),
)
WINDOW_SCHEMA = pa.schema([*FRAGMENT_SCHEMA, *_MORE], metadata={"tppo_rl.window": "1"})


@dataclass(frozen=True, eq=False)
class RecordedWindow:
    """One trained window of an episode."""

    fragment: Fragment
    """The window; its context is the prompt in the episode's first window, and empty in the others."""
    start: int
    """Tokens of the response before the window."""
    values: np.ndarray | None = None
    """float32 [n]: V(s_t) before the update; NaN on environment text. None without a critic."""
    advantages: np.ndarray | None = None
    """float32 [n]: A_t that the policy was trained with; NaN on environment text."""
    boundary_value: float | None = None
    """V(s_l) after the last token; None without a critic."""


def recorded_window(
    fragment: Fragment,
    *,
    values: Sequence[float] | np.ndarray | None,
    advantages: Sequence[float] | np.ndarray | None,
    boundary_value: float | None,
) -> RecordedWindow:
    """Returns what is kept of a fragment.

    Args:
        fragment: A window with its whole context.
        values: One for each sampled token; None without a critic.
        advantages: One for each sampled token; None: unknown.
        boundary_value: V(s_l) after the last token.
    """
    keep = fragment.prompt_length if fragment.window_index == 0 else 0
    cut = replace(
        fragment,
        context=fragment.context[:keep],
        context_sampled=fragment.context_sampled[:keep],
        context_rewards=fragment.context_rewards[:keep],
    )
    return RecordedWindow(
        cut,
        len(fragment.context) - fragment.prompt_length,
        _on_tokens(fragment, values),
        _on_tokens(fragment, advantages),
        boundary_value,
    )


def table_from_windows(windows: Sequence[RecordedWindow]) -> pa.Table:
    """Returns a table of `WINDOW_SCHEMA` with a row per window, in the given order."""
    table = table_from_fragments([window.fragment for window in windows])
    for field in _MORE:
        table = table.append_column(field, pa.array([getattr(window, field.name) for window in windows], field.type))
    return table.replace_schema_metadata(WINDOW_SCHEMA.metadata)


def windows_from_table(table: pa.Table) -> list[RecordedWindow]:
    """Returns the rows of a table of `WINDOW_SCHEMA`.

    Raises:
        ValueError: the table has another schema.
    """
    table = with_added_columns(table, WINDOW_SCHEMA)
    if not table.schema.equals(WINDOW_SCHEMA):
        raise ValueError(f"not a table of recorded windows: expected the schema {WINDOW_SCHEMA}, got {table.schema}")
    fragments = fragments_from_table(table.select(FRAGMENT_SCHEMA.names))
    more = table.select([field.name for field in _MORE]).to_pylist()
    return [
        RecordedWindow(
            fragment,
            row["start"],
            _array(row["values"]),
            _array(row["advantages"]),
            row["boundary_value"],
        )
        for fragment, row in zip(fragments, more, strict=True)
    ]


def _on_tokens(fragment: Fragment, numbers: Sequence[float] | np.ndarray | None) -> np.ndarray | None:
    if numbers is None:
        return None
    spread = np.full(len(fragment.tokens), np.nan, np.float32)
    spread[fragment.sampled.astype(bool)] = numbers
    return spread


def _array(numbers: Sequence[float] | None) -> np.ndarray | None:
    return None if numbers is None else np.array(numbers, np.float32)
