from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.importance import (
    effective_sample_size,
    importance_weights,
    sequence_mask,
    truncated_importance_weights,
)


def test_numbers_worked_by_hand() -> None:
    log_probs = torch.tensor([0.5, 0.2, 0.1], dtype=torch.float64).log()
    behavior = torch.tensor([0.25, 0.2, 0.2], dtype=torch.float64).log()
    weights = importance_weights(log_probs, behavior)
    assert weights.tolist() == pytest.approx([2.0, 1.0, 0.5])
    # (2 + 1 + 0.5)^2 / (4 + 1 + 0.25)
    assert effective_sample_size(3.5, 5.25) == pytest.approx(12.25 / 5.25)


def test_equal_weights_count_fully_and_one_heavy_weight_once() -> None:
    assert effective_sample_size(8 * 3.0, 8 * 9.0) == pytest.approx(8.0)
    assert effective_sample_size(1e6 + 7, 1e12 + 7) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="positive"):
        effective_sample_size(0.0, 0.0)


def test_finite_and_differentiable() -> None:
    weights = importance_weights(torch.tensor([900.0, -900.0]), torch.zeros(2))
    assert weights.tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-5)
    log_probs = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: importance_weights(x, torch.zeros(5)), [log_probs])
    with pytest.raises(ValueError, match="shape"):
        importance_weights(torch.zeros(2), torch.zeros(3))


def test_truncated_weights_worked_by_hand() -> None:
    log_probs = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    behavior = torch.tensor([0.125, 0.5], dtype=torch.float64).log()
    assert truncated_importance_weights(log_probs, behavior, cap=2.0).tolist() == pytest.approx([2.0, 0.5])
    assert truncated_importance_weights(log_probs, behavior, cap=None).tolist() == pytest.approx([4.0, 0.5])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), cap=st.none() | st.floats(0.01, 5.0))
def test_truncated_weights_equal_the_definition_in_any_order(seed: int, cap: float | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs, behavior = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    weights = truncated_importance_weights(log_probs, behavior, cap=cap)
    bound = math.inf if cap is None else cap
    expected = [min(math.exp(p - q), bound) for p, q in zip(log_probs.tolist(), behavior.tolist(), strict=True)]
    assert weights.tolist() == pytest.approx(expected, rel=1e-12)
    order = torch.randperm(9, generator=generator)
    assert torch.equal(truncated_importance_weights(log_probs[order], behavior[order], cap=cap), weights[order])


def test_truncated_weights_are_constants_and_finite() -> None:
    log_probs = torch.tensor([900.0, -900.0], requires_grad=True)
    weights = truncated_importance_weights(log_probs, torch.zeros(2, requires_grad=True), cap=None)
    assert not weights.requires_grad
    assert torch.isfinite(weights).all()
    for cap in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="cap"):
            truncated_importance_weights(torch.zeros(2), torch.zeros(2), cap=cap)
    with pytest.raises(ValueError, match="shape"):
        truncated_importance_weights(torch.zeros(2), torch.zeros(3), cap=1.0)


def test_sequence_mask_worked_by_hand() -> None:
    # Weights 4 and 1/4 have the mean 1; 2 and 8 have 4; row 1 has no token; 1/8 stands alone.
    weights = torch.tensor([4.0, 2.0, 0.25, 8.0, 0.125], dtype=torch.float64)
    rows = torch.tensor([0, 2, 0, 2, 3])
    arguments = weights.log(), torch.zeros(5, dtype=torch.float64), rows, 4
    assert sequence_mask(*arguments, low=0.5, high=2.0).tolist() == [True, True, False, False]
    assert sequence_mask(*arguments, low=0.1, high=4.1).tolist() == [True, True, True, True]
    assert sequence_mask(*arguments, low=2.0, high=5.0).tolist() == [False, True, True, False]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), low=st.floats(0.0, 1.0), width=st.floats(0.0, 2.0))
def test_sequence_mask_equals_the_definition_in_any_order(seed: int, low: float, width: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs, behavior = 0.7 * torch.randn(2, 15, generator=generator, dtype=torch.float64)
    rows = torch.randint(0, 6, (15,), generator=generator)
    kept = sequence_mask(log_probs, behavior, rows, 6, low=low, high=low + width)
    for row in range(6):
        weights = [
            math.exp(p - q)
            for p, q, r in zip(log_probs.tolist(), behavior.tolist(), rows.tolist(), strict=True)
            if r == row
        ]
        expected = not weights or low <= math.prod(weights) ** (1 / len(weights)) <= low + width
        assert bool(kept[row]) == expected
    order = torch.randperm(15, generator=generator)
    assert torch.equal(
        sequence_mask(log_probs[order], behavior[order], rows[order], 6, low=low, high=low + width), kept
    )
    renamed = torch.randperm(6, generator=generator)
    again = sequence_mask(log_probs, behavior, renamed[rows], 6, low=low, high=low + width)
    assert torch.equal(again[renamed], kept)


def test_sequence_mask_of_extreme_weights_and_no_tokens() -> None:
    log_probs = torch.tensor([900.0, 0.0, -900.0, 0.0], requires_grad=True)
    kept = sequence_mask(log_probs, torch.zeros(4), torch.tensor([0, 0, 1, 1]), 2, low=0.5, high=2.0)
    assert kept.tolist() == [False, False]
    assert not kept.requires_grad
    none = torch.zeros(0)
    assert sequence_mask(none, none, torch.zeros(0, dtype=torch.int64), 3, low=1.0, high=1.0).tolist() == [True] * 3
    assert sequence_mask(none, none, torch.zeros(0, dtype=torch.int64), 0, low=1.0, high=1.0).shape == (0,)


def test_sequence_mask_refuses_misfits() -> None:
    zeros, rows = torch.zeros(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"\[N\]"):
        sequence_mask(zeros, torch.zeros(3), rows, 2, low=0.5, high=2.0)
    with pytest.raises(ValueError, match=r"0 \.\. 0"):
        sequence_mask(zeros, zeros, rows, 1, low=0.5, high=2.0)
    for low, high in ((2.0, 1.0), (-0.1, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="low <= high"):
            sequence_mask(zeros, zeros, rows, 2, low=low, high=high)


@given(
    st.lists(st.tuples(st.floats(-9, 0), st.floats(-9, 0)), min_size=1, max_size=12), st.randoms(use_true_random=False)
)
def test_weights_equal_the_definition_in_any_order(pairs, random) -> None:
    random.shuffle(pairs)
    log_probs, behavior = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    expected = [math.exp(pi) / math.exp(mu) for pi, mu in pairs]
    assert importance_weights(log_probs, behavior).tolist() == pytest.approx(expected)
    worth = effective_sample_size(sum(expected), sum(weight**2 for weight in expected))
    assert 1 - 1e-9 <= worth <= len(pairs) + 1e-9
