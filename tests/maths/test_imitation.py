from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.imitation import positive_example_loss
from tppo_rl.maths.reduce import token_mean


def test_numbers_worked_by_hand() -> None:
    log_probs = torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64).log().requires_grad_()
    correct = torch.tensor([True, False, True])
    loss = positive_example_loss(log_probs, correct)
    assert loss.tolist() == pytest.approx([math.log(2), 0.0, math.log(8)])
    assert token_mean(loss, 2).item() == pytest.approx(2 * math.log(2))
    loss.sum().backward()
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [-1.0, 0.0, -1.0]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), filling=st.sampled_from([0.0, -1e30, -math.inf, math.nan]))
def test_equals_the_definition_whatever_wrong_responses_hold(seed: int, filling: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    plain = -torch.rand(12, generator=generator, dtype=torch.float64)
    correct = torch.rand(12, generator=generator) < 0.5
    log_probs = torch.where(correct, plain, filling).requires_grad_()
    loss = positive_example_loss(log_probs, correct)
    expected = [-value if good else 0.0 for value, good in zip(plain.tolist(), correct.tolist(), strict=True)]
    assert loss.tolist() == expected
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    assert torch.equal(gradient, -correct.double())
    order = torch.randperm(12, generator=generator)
    assert torch.equal(positive_example_loss(log_probs[order], correct[order]), loss[order])


def test_gradcheck_no_tokens_and_misfits() -> None:
    log_probs = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    correct = torch.tensor([True, False, True, True, False])
    assert torch.autograd.gradcheck(lambda x: positive_example_loss(x, correct), [log_probs])
    assert positive_example_loss(torch.zeros(0), torch.zeros(0, dtype=torch.bool)).shape == (0,)
    with pytest.raises(ValueError, match="shape"):
        positive_example_loss(torch.zeros(3), torch.ones(2, dtype=torch.bool))
