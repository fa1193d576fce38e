from __future__ import annotations

import pytest
import torch

from tppo_rl.maths.reduce import mean, token_mean, token_sum, variance


def test_numbers_worked_by_hand() -> None:
    per_token = torch.tensor([[1.0, 2.0], [3.0, float("nan")]])
    mask = torch.tensor([[True, True], [True, False]])
    assert float(token_sum(per_token, mask)) == 6.0
    assert float(token_mean(per_token, 4, mask)) == 1.5
    assert mean(6.0, 3) == 2.0
    assert variance(6.0, 14.0, 3) == pytest.approx(14 / 3 - 4)


def test_parts_add_up_to_the_mean_over_tokens_not_over_parts() -> None:
    parts = [torch.tensor([1.0]), torch.tensor([3.0, 5.0, 7.0]), torch.zeros(0)]
    assert float(sum(token_mean(part, 4) for part in parts)) == 4.0


def test_gradcheck() -> None:
    per_token = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([True, False, True, True, False, True])
    assert torch.autograd.gradcheck(lambda x: token_mean(x, 10, mask), [per_token])


def test_variance_is_never_negative() -> None:
    assert variance(3e8, 3e16 - 1.0, 3) == 0.0


def test_misuse_is_refused() -> None:
    for call in (lambda: token_mean(torch.ones(2), 0), lambda: mean(1.0, 0), lambda: variance(1.0, 1.0, 0)):
        with pytest.raises(ValueError, match="positive"):
            call()
    with pytest.raises(ValueError, match="mask"):
        token_sum(torch.ones(2), torch.ones(3, dtype=torch.bool))
