"""Fragments, the data that flow from env-runners to learners; a batch of them is an Arrow table.

A fragment is immutable once emitted. On the wire and on disk a batch of fragments is an Arrow table with
`FRAGMENT_SCHEMA`; `fragments_from_table` gives views into the table's buffers, so nothing is copied per token.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise

import numpy as np
import pyarrow as pa

NO_VERSION = -1
"""Policy version of a token that no policy sampled (text that the environment returned between turns)."""

_INT32_LIST = pa.list_(pa.field("item", pa.int32(), nullable=False))
_FLOAT32_LIST = pa.list_(pa.field("item", pa.float32(), nullable=False))
_UINT8_LIST = pa.list_(pa.field("item", pa.uint8(), nullable=False))

FRAGMENT_SCHEMA = pa.schema(
    [
        pa.field("episode_id", pa.int64(), nullable=False),
        pa.field("prompt_index", pa.int64(), nullable=False),
        pa.field("env_runner", pa.int32(), nullable=False),
        pa.field("window_index", pa.int32(), nullable=False),
        pa.field("prompt_length", pa.int32(), nullable=False),
        pa.field("context", _INT32_LIST, nullable=False),
        pa.field("context_sampled", _UINT8_LIST, nullable=False),
        pa.field("context_rewards", _FLOAT32_LIST, nullable=False),
        pa.field("tokens", _INT32_LIST, nullable=False),
        pa.field("sampled", _UINT8_LIST, nullable=False),
        pa.field("behavior_log_probs", _FLOAT32_LIST, nullable=False),
        pa.field("versions", _INT32_LIST, nullable=False),
        pa.field("rewards", _FLOAT32_LIST, nullable=False),
        pa.field("terminated", pa.bool_(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
        pa.field("correct", pa.bool_(), nullable=True),
        pa.field("hindsight_residual", pa.float32(), nullable=True),
        pa.field("left_out_advantages", _FLOAT32_LIST, nullable=False),
        pa.field("answer", _INT32_LIST, nullable=False),
    ],
    metadata={"tppo_rl.fragment": "4"},
)
_ADDED = ("left_out_advantages", "answer")
"""Columns that files of earlier releases do not have; they are empty lists there."""


@dataclass(frozen=True, eq=False)
class Fragment:
    """Consecutive tokens of one episode, sampled since the episode's last fragment.

    `len(fragment)` is the number of sampled tokens, which is what batch sizes count. Arrays named `context_*`
    have one entry for each context token, the others one for each token of `tokens`.
    """

    episode_id: int
    """Identifies the episode within the run; given by the ledger."""
    prompt_index: int
    """Position of the prompt in the run's prompt stream; the seed of the environment's reset derives from it."""
    env_runner: int
    """Index of the env-runner that sampled the fragment."""
    window_index: int
    """0 for the first window of the episode, 1 for the second, …"""
    prompt_length: int
    """Number of leading context tokens that are the prompt."""
    context: np.ndarray
    """int32 [c]: prompt and earlier windows."""
    context_sampled: np.ndarray
    """uint8 [c]: 1 where a policy sampled the context token, 0 for prompt and environment text."""
    context_rewards: np.ndarray
    """float32 [c]: rewards received on context tokens (0 on the prompt)."""
    tokens: np.ndarray
    """int32 [n]: tokens of this window, with environment text between turns where there was one."""
    sampled: np.ndarray
    """uint8 [n]: 1 where the policy sampled the token, 0 for environment text. Its sum is `len(fragment)`."""
    behavior_log_probs: np.ndarray
    """float32 [n]: log-prob (nats, temperature applied) of each sampled token from its engine; 0 elsewhere."""
    versions: np.ndarray
    """int32 [n]: policy version that sampled each token; `NO_VERSION` on environment text."""
    rewards: np.ndarray
    """float32 [n]: reward received on each token."""
    terminated: bool
    """The environment ended the episode at the last token."""
    truncated: bool
    """The episode ended at the last token because `max_response_length` (or the environment's limit) was reached."""
    correct: bool | None = None
    """Whether the response is right; None on unfinished fragments, and where the environment does not say."""
    hindsight_residual: float | None = None
    """Return that followed the fragment minus the boundary value that its advantages used. It is set on a fragment that
    is trained once more, after its episode has ended."""
    left_out_advantages: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))
    """float32 [number of sampled tokens]: what the first training of a fragment that is trained once more left out of its advantages;
    [0] where it left out nothing."""
    answer: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))
    """int32 [a]: token ids of the problem's known answer, which the critic alone reads; [0] where it does not (`critic_sees_answer`)."""

    def __len__(self) -> int:
        return int(np.count_nonzero(self.sampled))

    @property
    def finished(self) -> bool:
        """Whether the last token ended the episode (terminated or truncated)."""
        return self.terminated or self.truncated

    @property
    def num_positions(self) -> int:
        """Tokens that a forward pass over context and window processes."""
        return len(self.context) + len(self.tokens)

    @property
    def oldest_version(self) -> int:
        """Smallest policy version among the sampled tokens."""
        return int(self.versions[self.sampled.astype(bool)].min())


def accuracy(finished: Sequence[Fragment]) -> float | None:
    """Fraction of the responses that are right; None without responses, or if the correctness of one is unknown."""
    if not finished or any(fragment.correct is None for fragment in finished):
        return None
    return float(np.mean([bool(fragment.correct) for fragment in finished]))


def owned(fragment: Fragment) -> Fragment:
    """Returns the fragment with copies of its arrays: views would keep their whole table alive."""
    return replace(fragment, **{name: getattr(fragment, name).copy() for name in _ARRAYS})


def return_after(finished: Fragment, position: int, gamma: float) -> float:
    """Discounted return of an episode after its first `position` tokens, prompt included.

    Args:
        finished: The episode's last fragment, whose context is all that came before.
        position: Number of leading tokens to skip, between the prompt's length and the episode's.
        gamma: Discount of each sampled token; environment text is no step.
    """
    rewards = np.concatenate([finished.context_rewards, finished.rewards])[position:]
    sampled = np.concatenate([finished.context_sampled, finished.sampled])[position:].astype(bool)
    return float(np.dot(rewards[sampled], gamma ** np.arange(np.count_nonzero(sampled), dtype=np.float64)))


_COLUMNS = [one.name for one in fields(Fragment)]
_ARRAYS = [name for name in _COLUMNS if pa.types.is_list(FRAGMENT_SCHEMA.field(name).type)]
_SCALARS = [name for name in _COLUMNS if name not in _ARRAYS]


def table_from_fragments(fragments: Sequence[Fragment]) -> pa.Table:
    """Returns one table of `FRAGMENT_SCHEMA` with a row per fragment, in the given order."""
    columns = []
    for name in _COLUMNS:
        kind = FRAGMENT_SCHEMA.field(name).type
        values = [getattr(fragment, name) for fragment in fragments]
        columns.append(_list_array(values, kind) if name in _ARRAYS else pa.array(values, kind))
    return pa.Table.from_arrays(columns, schema=FRAGMENT_SCHEMA)


def fragments_from_table(table: pa.Table) -> list[Fragment]:
    """Returns the table's rows as fragments whose arrays are read-only views into the table's buffers.

    Raises:
        ValueError: the table does not have `FRAGMENT_SCHEMA`.
    """
    table = with_added_columns(table, FRAGMENT_SCHEMA)
    if not table.schema.equals(FRAGMENT_SCHEMA):
        raise ValueError(f"not a table of fragments: expected the schema {FRAGMENT_SCHEMA}, got {table.schema}")
    fragments: list[Fragment] = []
    for batch in table.to_batches():
        columns = {name: batch.column(name).to_pylist() for name in _SCALARS}
        columns |= {name: _split_views(batch.column(name)) for name in _ARRAYS}
        fragments += [Fragment(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
    return fragments


def with_added_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Returns a table of an earlier release with the fragments' columns that it lacks, empty; every other table as it is.

    Args:
        table: Of fragments, with more columns or not.
        schema: What it should have.
    """
    missing = [name for name in _ADDED if name not in table.column_names]
    if not missing or {*table.column_names, *missing} != set(schema.names):
        return table
    for name in missing:
        column = schema.field(name)
        table = table.append_column(column, _list_array([np.zeros(0)] * len(table), column.type))
    return table.select(schema.names)


def concatenate_tables(tables: Iterable[pa.Table]) -> pa.Table:
    """Returns the rows of all tables as one table without copying token arrays."""
    tables = list(tables)
    return pa.concat_tables(tables) if tables else FRAGMENT_SCHEMA.empty_table()


def _list_array(values: list[np.ndarray], list_type: pa.ListType) -> pa.ListArray:
    dtype = list_type.value_type.to_pandas_dtype()
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = np.concatenate(values).astype(dtype, copy=False) if values else np.zeros(0, dtype)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat, list_type.value_type), type=list_type)


def _split_views(column: pa.ListArray) -> list[np.ndarray]:
    offsets = column.offsets.to_numpy()
    flat = column.values.to_numpy(zero_copy_only=True)
    return [flat[start:stop] for start, stop in pairwise(offsets)]
