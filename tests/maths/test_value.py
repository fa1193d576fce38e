from __future__ import annotations

import pytest
import torch

from tppo_rl.maths.reduce import variance
from tppo_rl.maths.value import explained_variance, value_loss


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
