from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.learner.micro_batches import micro_batches, minibatches, num_minibatches


@settings(deadline=None, max_examples=80, derandomize=True)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(8, 200))
def test_each_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = torch.arange(len(lengths)).flip(0)
    groups = micro_batches(torch.tensor(lengths, dtype=torch.int64), rows, budget)
    assert sorted(torch.cat([*groups.rows, torch.zeros(0, dtype=torch.int64)]).tolist()) == list(range(len(lengths)))
    padded = [len(group) * max(lengths[row] for row in group.tolist()) for group in groups.rows]
    assert all(size <= budget or len(group) == 1 for size, group in zip(padded, groups.rows, strict=True))
    assert groups.positions == sum(lengths)
    assert groups.padded_positions == sum(padded)


@settings(deadline=None, max_examples=80, derandomize=True)
@given(lengths=st.lists(st.integers(1, 60), max_size=40), budget=st.integers(8, 200))
def test_packed_rows_fill_the_budget_without_padding(lengths: list[int], budget: int) -> None:
    groups = micro_batches(torch.tensor(lengths, dtype=torch.int64), torch.arange(len(lengths)), budget, packing=True)
    assert sorted(torch.cat([*groups.rows, torch.zeros(0, dtype=torch.int64)]).tolist()) == list(range(len(lengths)))
    sizes = [sum(lengths[row] for row in group.tolist()) for group in groups.rows]
    assert all(size <= budget or len(group) == 1 for size, group in zip(sizes, groups.rows, strict=True))
    assert groups.positions == groups.padded_positions == sum(lengths)
    half_empty = [size for size in sizes if 2 * size <= budget]
    assert len(half_empty) <= 1, "two of them would have gone together"


@settings(deadline=None, max_examples=80, derandomize=True)
@given(sequences=st.lists(st.tuples(st.integers(1, 60), st.integers(0, 300)), max_size=40), budget=st.integers(8, 200))
def test_contexts_that_are_read_count_in_part(sequences: list[tuple[int, int]], budget: int) -> None:
    lengths, contexts = torch.tensor(sequences, dtype=torch.int64).reshape(-1, 2).T
    groups = micro_batches(lengths, torch.arange(len(sequences)), budget, contexts=contexts)
    assert sorted(torch.cat([*groups.rows, torch.zeros(0, dtype=torch.int64)]).tolist()) == list(range(len(sequences)))
    for group in groups.rows:
        row_cost = int(lengths[group].max()) + int(contexts[group].max()) / 8
        assert len(group) == 1 or len(group) * row_cost <= budget
    assert groups.positions == int(lengths.sum())
    assert groups.padded_positions == sum(len(group) * int(lengths[group].max()) for group in groups.rows)


def test_like_contexts_go_together() -> None:
    contexts = torch.tensor([0, 800] * 8)
    groups = micro_batches(torch.full((16,), 10), torch.arange(16), 1000, contexts=contexts)
    assert [set(contexts[group].tolist()) for group in groups.rows] == [{800}, {0}]


def test_cuts_cost_least() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.sort(rng.integers(1, 40, 8))[::-1].copy()
        groups = micro_batches(torch.from_numpy(lengths), torch.arange(8), 96)
        cheapest = min(cost for cost in (cost_of(lengths, cut, 96) for cut in product([0, 1], repeat=7)) if cost)
        assert groups.padded_positions + 3 * len(groups.rows) == cheapest


def cost_of(lengths: np.ndarray, cut_after: tuple[int, ...], budget: int) -> float | None:
    """Padded tokens and 1/32 of the budget per group; None where a group is too large."""
    cost = 0.0
    for group in np.split(lengths, np.flatnonzero(cut_after) + 1):
        if len(group) > 1 and len(group) * group[0] > budget:
            return None
        cost += len(group) * group[0] + budget / 32
    return cost


def test_like_lengths_go_together() -> None:
    lengths = torch.tensor([10, 100] * 8)
    groups = micro_batches(lengths, torch.arange(16), 800)
    assert groups.padded_positions == groups.positions
    assert [set(lengths[group].tolist()) for group in groups.rows] == [{100}, {10}]


def test_a_long_sequence_goes_alone() -> None:
    groups = micro_batches(torch.tensor([5, 500, 6]), torch.arange(3), 64)
    assert [group.tolist() for group in groups.rows] == [[1], [2, 0]]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(counts=st.lists(st.integers(1, 50), max_size=30), parts=st.integers(1, 8), seed=st.integers(0, 99))
def test_minibatches_are_balanced_and_complete(counts: list[int], parts: int, seed: int) -> None:
    tokens = torch.tensor(counts, dtype=torch.int64)
    split = minibatches(tokens, parts, np.random.default_rng(seed))
    assert len(split) == parts
    assert sorted(torch.cat(split).tolist()) == list(range(len(counts)))
    if counts:
        share = sum(counts) / parts
        assert all(abs(int(tokens[rows].sum()) - share) <= max(counts) for rows in split)


def test_minibatches_depend_on_the_generator_only() -> None:
    tokens = torch.arange(1, 41)
    first, again, other = (minibatches(tokens, 4, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert all(torch.equal(left, right) for left, right in zip(first, again, strict=True))
    assert any(not torch.equal(left, right) for left, right in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("tokens", "size", "learners", "expected"),
    [(0, 64, 1, 0), (0, None, 2, 0), (10, 64, 1, 1), (4096, 1024, 1, 4), (4096, 1024, 2, 2), (4096, None, 2, 1)],
)
def test_num_minibatches(tokens: int, size: int | None, learners: int, expected: int) -> None:
    assert num_minibatches(tokens, size, learners) == expected
