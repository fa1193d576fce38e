from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.surrogate import MAX_LOG_RATIO, clipped_surrogate, truncated_policy_gradient


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


def test_dual_clip_worked_by_hand() -> None:
    ratios = torch.tensor([2.9, 3.1, 10.0, 10.0, 0.5], dtype=torch.float64)
    advantages = torch.tensor([-1.0, -1.0, -2.0, 2.0, -1.0], dtype=torch.float64)
    terms = clipped_surrogate(ratios.log(), torch.zeros(5), advantages, clip_low=0.2, clip_high=0.28, dual_clip=3.0)
    assert terms.loss.tolist() == pytest.approx([2.9, 3.0, 6.0, -2.56, 0.8])
    assert terms.dual_clipped.tolist() == [False, True, True, False, False]
    plain = clipped_surrogate(ratios.log(), torch.zeros(5), advantages, clip_low=0.2, clip_high=0.28)
    assert plain.dual_clipped.tolist() == [False] * 5
    assert plain.loss.tolist() == pytest.approx([2.9, 3.1, 20.0, -2.56, 0.8])
    for name in ("ratio", "clipped_low", "clipped_high"):
        assert torch.equal(getattr(plain, name), getattr(terms, name))


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    log_ratio=st.floats(-3.0, 3.0),
    advantage=st.floats(-5.0, 5.0),
    high=st.floats(0.0, 3.0),
    bound=st.floats(1.0, 6.0, exclude_min=True),
)
def test_dual_clip_equals_the_definition(log_ratio: float, advantage: float, high: float, bound: float) -> None:
    terms = clipped_surrogate(
        torch.tensor([log_ratio], dtype=torch.float64),
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        clip_low=0.2,
        clip_high=high,
        dual_clip=bound,
    )
    ratio = math.exp(log_ratio)
    objective = min(ratio * advantage, min(max(ratio, 0.8), 1 + high) * advantage)
    if advantage < 0:
        objective = max(objective, bound * advantage)
    assert float(terms.loss) == pytest.approx(-objective, abs=1e-12)


def test_dual_clip_stops_the_gradient_where_it_holds() -> None:
    log_probs = torch.tensor([1.0, 1.2, 1.2], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return clipped_surrogate(x, torch.zeros(3), advantages, clip_low=0.2, clip_high=9.0, dual_clip=3.0).loss

    assert torch.autograd.gradcheck(loss, [log_probs])
    (gradient,) = torch.autograd.grad(loss(log_probs).sum(), log_probs)
    assert gradient.tolist() == pytest.approx([math.e, 0.0, -math.exp(1.2)])


def test_dual_clip_above_1_only() -> None:
    for bound in (1.0, 0.5, -3.0, float("nan")):
        with pytest.raises(ValueError, match="dual_clip"):
            clipped_surrogate(
                torch.zeros(1), torch.zeros(1), torch.ones(1), clip_low=0.2, clip_high=0.2, dual_clip=bound
            )


def test_truncated_policy_gradient_worked_by_hand() -> None:
    # pi = 1/2 and 1/4 against mu = 1/8 and 1/2: weights 4, held at 2, and 1/2.
    log_probs = torch.tensor([0.5, 0.25], dtype=torch.float64).log().requires_grad_()
    behavior = torch.tensor([0.125, 0.5], dtype=torch.float64).log()
    loss = truncated_policy_gradient(log_probs, behavior, torch.tensor([3.0, -1.0], dtype=torch.float64), cap=2.0)
    assert loss.tolist() == pytest.approx([-2 * 3 * math.log(0.5), 0.5 * math.log(0.25)])
    loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == pytest.approx([-6.0, 0.5])


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), cap=st.floats(0.1, 4.0))
def test_truncated_policy_gradient_equals_the_definition_in_any_order(seed: int, cap: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    log_probs, behavior, advantages = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    loss = truncated_policy_gradient(log_probs, behavior, advantages, cap=cap)
    expected = [
        -min(math.exp(p - q), cap) * a * p
        for p, q, a in zip(log_probs.tolist(), behavior.tolist(), advantages.tolist(), strict=True)
    ]
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)
    order = torch.randperm(9, generator=generator)
    shuffled = truncated_policy_gradient(log_probs[order], behavior[order], advantages[order], cap=cap)
    assert torch.equal(shuffled, loss[order])


def test_truncated_policy_gradient_on_policy_is_the_gradient_of_the_ratio() -> None:
    """At pi = mu with a cap of 1 both losses have the gradient -A."""
    log_probs = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    advantages = torch.tensor([0.7, -0.3], dtype=torch.float64)
    ours = truncated_policy_gradient(log_probs, log_probs.detach(), advantages, cap=1.0)
    ratio = clipped_surrogate(log_probs, log_probs.detach(), advantages, clip_low=0.2, clip_high=0.2).loss
    gradients = [torch.autograd.grad(loss.sum(), log_probs)[0] for loss in (ours, ratio)]
    torch.testing.assert_close(gradients[0], gradients[1])


def test_truncated_policy_gradient_gradcheck_constants_and_misfits() -> None:
    generator = torch.Generator().manual_seed(3)
    log_probs, behavior, advantages = torch.randn(3, 8, generator=generator, dtype=torch.float64)
    # The weight is a constant, so its part is checked against a loss whose weights are fixed numbers.
    weights = (log_probs - behavior).exp().clamp(max=1.5)
    log_probs.requires_grad_()
    behavior.requires_grad_()
    advantages.requires_grad_()

    def fixed(x: torch.Tensor) -> torch.Tensor:
        return -weights * advantages.detach() * x

    assert torch.autograd.gradcheck(fixed, [log_probs])
    loss = truncated_policy_gradient(log_probs, behavior, advantages, cap=1.5)
    torch.testing.assert_close(loss, fixed(log_probs))
    (expected,) = torch.autograd.grad(fixed(log_probs).sum(), log_probs)
    loss.sum().backward()
    torch.testing.assert_close(log_probs.grad, expected)
    assert behavior.grad is None
    assert advantages.grad is None
    with pytest.raises(ValueError, match="one shape"):
        truncated_policy_gradient(torch.zeros(3), torch.zeros(3), torch.zeros(2), cap=1.0)
    with pytest.raises(ValueError, match="cap"):
        truncated_policy_gradient(torch.zeros(3), torch.zeros(3), torch.zeros(3), cap=0.0)
