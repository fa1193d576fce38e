from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.surrogate import MAX_LOG_RATIO, clipped_surrogate


def test_numbers_worked_by_hand() -> None:
    ratios = torch.tensor([1.0, 1.2, 1.5, 1.5, 0.5, 0.5, 0.9], dtype=torch.float64)
    advantages = torch.tensor([2.0, 1.0, 1.0, -1.0, 1.0, -1.0, -2.0], dtype=torch.float64)
    terms = clipped_surrogate(ratios.log(), torch.zeros(7), advantages, clip_low=0.2, clip_high=0.28)
    # Up and good beyond 1.28 is held at 1.28, down and bad beyond 0.8 at 0.8; the harmful directions are never held.
    assert terms.loss.tolist() == pytest.approx([-2.0, -1.2, -1.28, 1.5, -0.5, 0.8, 1.8])
    assert terms.ratio.tolist() == pytest.approx(ratios.tolist())
    assert terms.clipped_high.tolist() == [False, False, True, False, False, False, False]
    assert terms.clipped_low.tolist() == [False, False, False, False, False, True, False]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    log_ratio=st.floats(-3.0, 3.0),
    advantage=st.floats(-5.0, 5.0),
    low=st.floats(0.0, 1.0),
    high=st.floats(0.0, 3.0),
)
def test_equals_the_definition(log_ratio: float, advantage: float, low: float, high: float) -> None:
    terms = clipped_surrogate(
        torch.tensor([log_ratio], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        clip_low=low,
        clip_high=high,
    )
    ratio = math.exp(log_ratio)
    held = min(max(ratio, 1 - low), 1 + high)
    assert float(terms.loss) == pytest.approx(-min(ratio * advantage, held * advantage), abs=1e-12)


def test_gradient_stops_exactly_on_clipped_tokens() -> None:
    log_probs = torch.tensor([0.0, 0.5, -0.5, 0.5, -0.5], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0], dtype=torch.float64)
    terms = clipped_surrogate(log_probs, torch.zeros(5), advantages, clip_low=0.2, clip_high=0.28)
    terms.loss.sum().backward()
    clipped = terms.clipped_low | terms.clipped_high
    assert clipped.tolist() == [False, True, True, False, False]
    assert (log_probs.grad == 0).tolist() == clipped.tolist()
    assert log_probs.grad is not None
    assert float(log_probs.grad[0]) == pytest.approx(-1.0)


def test_gradcheck_and_constants() -> None:
    generator = torch.Generator().manual_seed(0)
    log_probs, old, advantages = torch.randn(3, 12, generator=generator, dtype=torch.float64)
    log_probs.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: clipped_surrogate(x, old, advantages, clip_low=0.2, clip_high=0.28).loss, [log_probs]
    )
    old.requires_grad_()
    advantages.requires_grad_()
    clipped_surrogate(log_probs, old, advantages, clip_low=0.2, clip_high=0.28).loss.sum().backward()
    assert old.grad is None
    assert advantages.grad is None


def test_extreme_log_ratios_stay_finite() -> None:
    log_probs = torch.tensor([500.0, -500.0], requires_grad=True)
    terms = clipped_surrogate(log_probs, torch.zeros(2), torch.tensor([-1.0, 1.0]), clip_low=0.2, clip_high=0.28)
    terms.loss.sum().backward()
    assert terms.ratio[0] == pytest.approx(math.exp(MAX_LOG_RATIO), rel=1e-5)
    assert torch.isfinite(terms.loss).all()
    assert log_probs.grad is not None
    assert torch.isfinite(log_probs.grad).all()


def test_token_order_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    log_probs, old, advantages = torch.randn(3, 20, generator=generator)
    order = torch.randperm(20, generator=generator)
    plain = clipped_surrogate(log_probs, old, advantages, clip_low=0.2, clip_high=0.28)
    shuffled = clipped_surrogate(log_probs[order], old[order], advantages[order], clip_low=0.2, clip_high=0.28)
    for left, right in zip(plain, shuffled, strict=True):
        assert torch.equal(left[order], right)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        clipped_surrogate(torch.zeros(3), torch.zeros(3), torch.zeros(3, 1), clip_low=0.2, clip_high=0.2)
