from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.group_advantages import group_relative_advantages


def test_numbers_worked_by_hand() -> None:
    # Group 0: 1, 3 with mean 2 and sample std sqrt(2). Group 2: 4 alone. Group 1: three equal returns.
    returns = torch.tensor([1.0, 0.1, 4.0, 3.0, 0.1, 0.1], dtype=torch.float64)
    groups = torch.tensor([0, 1, 2, 0, 1, 1])
    plain = group_relative_advantages(returns, groups, scale=False)
    assert plain.tolist() == pytest.approx([-1.0, 0.0, 0.0, 1.0, 0.0, 0.0], abs=1e-15)
    scaled = group_relative_advantages(returns, groups, scale=True)
    size = 1 / (math.sqrt(2) + 1e-4)
    assert scaled.tolist() == pytest.approx([-size, 0.0, 0.0, size, 0.0, 0.0], abs=1e-11)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    labels=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    scale=st.booleans(),
    binary=st.booleans(),
)
def test_equals_the_definition_in_any_order(seed: int, labels: list[int], scale: bool, binary: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = torch.tensor(labels)
    returns = torch.randn(len(labels), generator=generator, dtype=torch.float64)
    returns = (returns > 0).double() if binary else returns
    advantages = group_relative_advantages(returns, groups, scale=scale)
    for label, value, advantage in zip(labels, returns.tolist(), advantages.tolist(), strict=True):
        members = [other for other, group in zip(returns.tolist(), labels, strict=True) if group == label]
        expected = value - statistics.fmean(members)
        if scale and len(members) > 1:
            expected /= statistics.stdev(members) + 1e-4
        assert advantage == pytest.approx(expected if len(members) > 1 else 0.0, abs=1e-9)
    order = torch.randperm(len(labels), generator=generator)
    shuffled = group_relative_advantages(returns[order], groups[order], scale=scale)
    torch.testing.assert_close(shuffled, advantages[order], atol=1e-10, rtol=1e-10)
    # Neither other names of the groups nor the same reward for all matter.
    renamed = torch.randperm(9, generator=generator)[groups]
    torch.testing.assert_close(
        group_relative_advantages(returns + 1.0, renamed, scale=scale), advantages, atol=1e-9, rtol=1e-9
    )
    sums = torch.zeros(6, dtype=torch.float64).index_add(0, groups, advantages)
    torch.testing.assert_close(sums, torch.zeros_like(sums), atol=1e-9, rtol=0)


@pytest.mark.parametrize("scale", [True, False])
def test_equal_returns_far_from_0_in_float32(scale: bool) -> None:
    advantages = group_relative_advantages(torch.full((7,), 1000.1), torch.zeros(7, dtype=torch.int64), scale=scale)
    assert advantages.dtype == torch.float32
    assert advantages.abs().max() < 1e-6


def test_returns_are_constants() -> None:
    returns = torch.tensor([1.0, 0.0], requires_grad=True)
    for scale in (True, False):
        assert not group_relative_advantages(returns, torch.tensor([0, 0]), scale=scale).requires_grad


def test_no_responses_and_misfits() -> None:
    none = torch.zeros(0, dtype=torch.int64)
    assert group_relative_advantages(torch.zeros(0), none, scale=True).shape == (0,)
    with pytest.raises(ValueError, match=r"\[B\]"):
        group_relative_advantages(torch.zeros(3), torch.zeros(2, dtype=torch.int64), scale=True)
    with pytest.raises(ValueError, match="negative"):
        group_relative_advantages(torch.zeros(2), torch.tensor([0, -1]), scale=True)
