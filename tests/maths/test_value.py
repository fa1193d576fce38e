from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.reduce import variance
from tppo_rl.maths.value import clipped_value_loss, difference_slope, explained_variance, value_loss


def test_loss_worked_by_hand() -> None:
    values = torch.tensor([1.0, -1.0, 0.5], requires_grad=True)
    loss = value_loss(values, torch.tensor([0.0, 1.0, 0.5]))
    assert loss.tolist() == [0.5, 2.0, 0.0]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, -2.0, 0.0]


def test_loss_gradcheck_and_constant_target() -> None:
    values, returns = torch.randn(2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values.requires_grad_()
    returns.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: value_loss(v, returns), [values])
    value_loss(values, returns).sum().backward()
    assert returns.grad is None
    with pytest.raises(ValueError, match="shape"):
        value_loss(torch.zeros(2), torch.zeros(2, 1))


def test_explained_variance_worked_by_hand() -> None:
    assert explained_variance(0.0, 4.0) == 1.0
    assert explained_variance(1.0, 4.0) == 0.75
    assert explained_variance(8.0, 4.0) == -1.0
    with pytest.raises(ValueError, match="return_variance"):
        explained_variance(1.0, 0.0)


def test_explained_variance_ignores_a_constant_offset() -> None:
    returns = torch.randn(50, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    errors = returns - (returns + 3.0)
    spread = variance(float(errors.sum()), float(errors.square().sum()), 50)
    assert explained_variance(spread, float(returns.var(correction=0))) == pytest.approx(1.0)


def test_clipped_loss_worked_by_hand() -> None:
    # Held values: 0.2, 0.1, -0.2, 0.2. Towards the return and beyond the clip the held value has the larger loss.
    values = torch.tensor([0.5, 0.1, -0.5, 3.0], dtype=torch.float64, requires_grad=True)
    returns = torch.tensor([1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    loss = clipped_value_loss(values, torch.zeros(4, dtype=torch.float64), returns, clip=0.2)
    assert loss.tolist() == pytest.approx([0.5 * 0.8**2, 0.5 * 0.9**2, 0.5 * 1.5**2, 0.5 * 2.0**2])
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, -0.9, -1.5, 2.0])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), clip=st.floats(0.01, 2.0))
def test_clipped_loss_equals_the_definition_in_any_order(seed: int, clip: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    values, old_values, returns = torch.randn(3, 9, generator=generator, dtype=torch.float64)
    loss = clipped_value_loss(values, old_values, returns, clip=clip)
    expected = [
        max(0.5 * (v - g) ** 2, 0.5 * (o + min(max(v - o, -clip), clip) - g) ** 2)
        for v, o, g in zip(values.tolist(), old_values.tolist(), returns.tolist(), strict=True)
    ]
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)
    assert (loss >= value_loss(values, returns)).all()
    order = torch.randperm(9, generator=generator)
    assert torch.equal(clipped_value_loss(values[order], old_values[order], returns[order], clip=clip), loss[order])


def test_clipped_loss_within_the_clip_is_the_plain_one() -> None:
    values, returns = torch.randn(2, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    values.requires_grad_()
    clipped = clipped_value_loss(values, values.detach() + 0.1, returns, clip=0.2)
    plain = value_loss(values, returns)
    torch.testing.assert_close(clipped, plain)
    gradients = [torch.autograd.grad(loss.sum(), values)[0] for loss in (clipped, plain)]
    torch.testing.assert_close(*gradients)


def test_clipped_loss_gradcheck_constants_and_misfits() -> None:
    values, old_values, returns = torch.randn(3, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for tensor in (values, old_values, returns):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda v: clipped_value_loss(v, old_values.detach(), returns, clip=0.3), [values])
    clipped_value_loss(values, old_values, returns, clip=0.3).sum().backward()
    assert old_values.grad is None
    assert returns.grad is None
    with pytest.raises(ValueError, match="one shape"):
        clipped_value_loss(torch.zeros(2), torch.zeros(2, 1), torch.zeros(2), clip=0.2)
    for clip in (0.0, -0.2, float("nan")):
        with pytest.raises(ValueError, match="clip"):
            clipped_value_loss(torch.zeros(2), torch.zeros(2), torch.zeros(2), clip=clip)


@given(
    st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=12), st.randoms(use_true_random=False)
)
def test_loss_equals_the_definition_in_any_order(pairs, random) -> None:
    random.shuffle(pairs)
    values, returns = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    assert value_loss(values, returns).tolist() == pytest.approx([0.5 * (v - g) ** 2 for v, g in pairs])


@pytest.mark.parametrize(("knows", "expected"), [(1.0, 1.0), (0.5, 0.5), (0.0, 0.0)])
def test_difference_slope_is_what_the_returns_bear_out(knows: float, expected: float) -> None:
    """True values walk at random, and returns end them; the critic's differences are true ones or noise of the same size."""
    rng = np.random.default_rng(0)
    before = rng.normal(size=200_000)
    step, noise = rng.normal(size=(2, 200_000))
    returns = before + step + rng.normal(size=200_000)
    seen = step if knows == 1 else noise if knows == 0 else (step + noise)
    slope = difference_slope(before, before + seen, returns)
    assert slope == pytest.approx(expected, abs=0.01)


def test_difference_slope_needs_differences() -> None:
    values = np.arange(20.0)
    assert difference_slope(values, values, values) is None
    assert difference_slope(values[:7], values[:7] ** 2, values[:7]) is None
    assert difference_slope(values, values**2, 3.0 * values**2) == pytest.approx(3.0)
