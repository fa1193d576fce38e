"""Episodes that have begun and not ended: what is needed to go on with them elsewhere, from their last token.

An env-runner tells the driver of its open episodes with every answer. They go on in another env-runner when theirs is lost, and
in another process from a checkpoint. The environment is made again: by the seed of its reset and the turns that it has answered.
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
    owned,
    table_from_fragments,
    with_added_columns,
)

_TEXTS = pa.list_(pa.field("item", pa.string(), nullable=False))
_NUMBERS = pa.list_(pa.field("item", pa.float64(), nullable=False))
_MORE = (
    pa.field("turns", _TEXTS, nullable=False),
    pa.field("observations", _TEXTS, nullable=False),
    pa.field("turn_rewards", _NUMBERS, nullable=False),
)
BEGUN_SCHEMA = pa.schema([*FRAGMENT_SCHEMA, *_MORE], metadata={"tppo_rl.begun": "1"})


@dataclass(frozen=True, eq=False)
class BegunEpisode:
    """An episode that has begun and not ended."""

    window: Fragment
    """The open window: tokens that no fragment holds yet, maybe none. It is never finished."""
    turns: tuple[str, ...] = ()
    """Turns of the model that the environment has answered."""
    observations: tuple[str, ...] = ()
    """What it answered, one for each turn."""
    turn_rewards: tuple[float, ...] = ()
    """What it gave for each of these turns."""

    @property
    def episode_id(self) -> int:
        """Of the episode."""
        return self.window.episode_id

    @property
    def open_tokens(self) -> int:
        """Sampled tokens that no fragment holds yet."""
        return len(self.window)

    @property
    def oldest_version(self) -> int | None:
        """Oldest policy version among the open tokens; None if there are none."""
        return self.window.oldest_version if self.open_tokens else None

    def told(self) -> BegunEpisode:
        """Returns what the driver must be told: the context only where it has seen no window of the episode."""
        return self if self.window.window_index == 0 else self.with_context(self.window, 0)

    def with_context(self, source: Fragment, length: int | None = None) -> BegunEpisode:
        """Returns the episode with the context of a fragment, or its first `length` tokens."""
        cut = slice(0, length)
        window = replace(
            self.window,
            context=source.context[cut],
            context_sampled=source.context_sampled[cut],
            context_rewards=source.context_rewards[cut],
        )
        return replace(self, window=window)

    def owned(self) -> BegunEpisode:
        """Returns the episode with arrays of its own, which keep no table alive."""
        return replace(self, window=owned(self.window))

    def without_window(self) -> BegunEpisode:
        """Returns the episode as it is when its open window has been closed."""
        return replace(self, window=next_window(self.window))


def next_window(window: Fragment) -> Fragment:
    """Returns the window that begins where a closed one ends, without tokens."""

    def nothing(array: np.ndarray) -> np.ndarray:
        return np.zeros(0, array.dtype)

    return replace(
        window,
        window_index=window.window_index + 1,
        context=np.concatenate([window.context, window.tokens]),
        context_sampled=np.concatenate([window.context_sampled, window.sampled]),
        context_rewards=np.concatenate([window.context_rewards, window.rewards]),
        tokens=nothing(window.tokens),
        sampled=nothing(window.sampled),
        behavior_log_probs=nothing(window.behavior_log_probs),
        versions=nothing(window.versions),
        rewards=nothing(window.rewards),
        terminated=False,
        truncated=False,
        correct=None,
    )


def table_from_begun(episodes: Sequence[BegunEpisode]) -> pa.Table:
    """Returns a table of `BEGUN_SCHEMA` with a row per episode, in the given order."""
    table = table_from_fragments([episode.window for episode in episodes])
    for field in _MORE:
        column = pa.array([list(getattr(episode, field.name)) for episode in episodes], field.type)
        table = table.append_column(field, column)
    return table.replace_schema_metadata(BEGUN_SCHEMA.metadata)


def begun_from_table(table: pa.Table) -> list[BegunEpisode]:
    """Returns the rows of a table of `BEGUN_SCHEMA`; arrays are views into the table's buffers.

    Raises:
        ValueError: the table has another schema.
    """
    table = with_added_columns(table, BEGUN_SCHEMA)
    if not table.schema.equals(BEGUN_SCHEMA):
        raise ValueError(f"not a table of begun episodes: expected the schema {BEGUN_SCHEMA}, got {table.schema}")
    windows = fragments_from_table(
        table.select(FRAGMENT_SCHEMA.names).replace_schema_metadata(FRAGMENT_SCHEMA.metadata)
    )
    more = table.select([field.name for field in _MORE]).to_pylist()
    return [
        BegunEpisode(window, *(tuple(row[field.name]) for field in _MORE))
        for window, row in zip(windows, more, strict=True)
    ]
