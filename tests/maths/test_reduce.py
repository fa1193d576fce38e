from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.reduce import mean, response_weights, token_mean, token_sum, variance


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


def test_response_weights_worked_by_hand() -> None:
    weights = response_weights(torch.tensor([1, 4, 0, 2]))
    assert weights.dtype == torch.float32
    assert weights.tolist() == [1.0, 0.25, 0.0, 0.5]
    # Responses (1, 3) and (8): token mean 4, mean of the responses' means (2 + 8) / 2 = 5.
    per_token = torch.tensor([[1.0, 3.0], [8.0, float("nan")]])
    mask = torch.tensor([[True, True], [True, False]])
    weighted = per_token * response_weights(mask.sum(dim=1))[:, None]
    assert float(token_mean(weighted, 2, mask)) == 5.0


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), filling=st.sampled_from([0.0, 1e30, float("nan")]))
def test_response_weights_give_the_mean_of_means(seed: int, filling: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 8, (5,), generator=generator)
    mask = torch.arange(8) < lengths[:, None]
    per_token = torch.randn(5, 8, generator=generator, dtype=torch.float64).masked_fill(~mask, filling)
    per_token.requires_grad_()
    weighted = token_mean(per_token * response_weights(lengths)[:, None], 5, mask)
    means = [sum(row[:length]) / length for row, length in zip(per_token.tolist(), lengths.tolist(), strict=True)]
    assert weighted.item() == pytest.approx(sum(means) / 5, abs=1e-6)
    (gradient,) = torch.autograd.grad(weighted, per_token)
    expected = torch.where(mask, 1.0 / (5.0 * lengths[:, None].double()), 0.0)
    torch.testing.assert_close(gradient, expected, atol=1e-8, rtol=1e-6)
    order = torch.randperm(5, generator=generator)
    assert torch.equal(response_weights(lengths[order]), response_weights(lengths)[order])


def test_response_weights_gradcheck_no_rows_and_misuse() -> None:
    per_token = torch.randn(2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    weights = response_weights(mask.sum(dim=1))[:, None]
    assert torch.autograd.gradcheck(lambda x: token_mean(x * weights, 2, mask), [per_token])
    assert response_weights(torch.zeros(0, dtype=torch.int64)).shape == (0,)
    for lengths in (torch.tensor([1, -1]), torch.tensor([[1, 2]])):
        with pytest.raises(ValueError, match="lengths"):
            response_weights(lengths)


@given(st.lists(st.lists(st.floats(-5, 5), max_size=5), min_size=1, max_size=5).filter(any), st.floats(-9, 9))
def test_token_mean_of_parts_is_that_of_the_whole(parts, filling) -> None:
    every = [value for part in parts for value in part]
    width = max(map(len, parts))
    total = 0.0
    for part in parts:
        padded = torch.tensor([*part, *[filling] * (width - len(part))], dtype=torch.float64)
        total += float(token_mean(padded, len(every), torch.arange(width) < len(part)))
    assert total == pytest.approx(sum(every) / len(every), abs=1e-9)
