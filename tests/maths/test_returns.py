from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from tppo_rl.maths.advantages import egae
from tppo_rl.maths.returns import lambda_returns, monte_carlo_returns


def test_numbers_worked_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 4.0], [0.0, 2.0, 99.0]])
    lengths = torch.tensor([3, 2])
    assert monte_carlo_returns(rewards, lengths, gamma=0.5).tolist() == [[2.0, 2.0, 4.0], [1.0, 2.0, 0.0]]
    assert monte_carlo_returns(rewards, lengths, gamma=1.0).tolist() == [[5.0, 4.0, 4.0], [2.0, 2.0, 0.0]]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.1, 1.0), filling=st.sampled_from([0.0, 1e30, float("nan")]))
def test_equals_the_definition_whatever_the_padding(seed: int, gamma: float, filling: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(4, 9, generator=generator, dtype=torch.float64)
    lengths = torch.randint(0, 10, (4,), generator=generator)
    rewards = torch.where(torch.arange(9) < lengths[:, None], rewards, filling)
    returns = monte_carlo_returns(rewards, lengths, gamma=gamma)
    for row, length in enumerate(lengths.tolist()):
        tail = rewards[row, :length].tolist()
        expected = [sum(gamma**k * r for k, r in enumerate(tail[t:])) for t in range(length)]
        assert returns[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert not returns[row, length:].any()


def test_glued_windows_equal_the_whole() -> None:
    rewards = torch.randn(1, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = monte_carlo_returns(rewards, torch.tensor([10]), gamma=0.9)[0]
    first = monte_carlo_returns(rewards[:, :4], torch.tensor([4]), gamma=0.9)[0]
    second = monte_carlo_returns(rewards[:, 4:], torch.tensor([6]), gamma=0.9)[0]
    torch.testing.assert_close(whole[:4], first + 0.9 ** (4 - torch.arange(4)).double() * second[0])
    torch.testing.assert_close(whole[4:], second)


def test_equals_gae_with_lambda_one_and_no_critic() -> None:
    rewards = torch.randn(3, 6, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([6, 2, 4])
    zeros = torch.zeros(3, 6)
    advantages = egae(rewards, zeros, zeros[:, 0], lengths, gamma=0.97, lambda_=1.0)
    torch.testing.assert_close(monte_carlo_returns(rewards, lengths, gamma=0.97), advantages)


def test_gradients_and_empty_rows() -> None:
    rewards = torch.randn(2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    lengths = torch.tensor([4, 0])
    assert torch.autograd.gradcheck(lambda r: monte_carlo_returns(r, lengths, gamma=0.8), [rewards])
    assert monte_carlo_returns(torch.zeros(0, 0), torch.zeros(0, dtype=torch.int64), gamma=1.0).shape == (0, 0)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match="lengths"):
        monte_carlo_returns(torch.zeros(2, 3), torch.tensor([1]), gamma=1.0)
    with pytest.raises(ValueError, match=r"0 \.\. 3"):
        monte_carlo_returns(torch.zeros(2, 3), torch.tensor([1, 4]), gamma=1.0)


def test_lambda_returns_worked_by_hand() -> None:
    # delta = [2 - 1, 1 + 6 - 2] = [1, 5]; A = [1 + 0.5 * 5, 5]; G = A + V.
    returns = lambda_returns(
        torch.tensor([[0.0, 1.0, 99.0]]),
        torch.tensor([[1.0, 2.0, 99.0]]),
        torch.tensor([6.0]),
        torch.tensor([2]),
        gamma=1.0,
        lambda_=0.5,
    )
    assert returns.tolist() == [[4.5, 7.0, 0.0]]


@settings(deadline=None, max_examples=40, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    gamma=st.floats(0.1, 1.0),
    lambda_=st.floats(0.0, 1.0),
    filling=st.sampled_from([0.0, 1e30, float("nan")]),
)
def test_lambda_returns_equal_the_backward_definition(seed: int, gamma: float, lambda_: float, filling: float) -> None:
    """G_t = r_t + gamma * ((1 - lambda) * V_{t+1} + lambda * G_{t+1}), begun with the boundary value."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, 4, 9, generator=generator, dtype=torch.float64)
    boundary = torch.randn(4, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 10, (4,), generator=generator)
    inside = torch.arange(9) < lengths[:, None]
    rewards, values = torch.where(inside, rewards, filling), torch.where(inside, values, filling)
    returns = lambda_returns(rewards, values, boundary, lengths, gamma=gamma, lambda_=lambda_)
    for row, length in enumerate(lengths.tolist()):
        after = value_after = float(boundary[row])
        expected = []
        for t in reversed(range(length)):
            after = float(rewards[row, t]) + gamma * ((1 - lambda_) * value_after + lambda_ * after)
            value_after = float(values[row, t])
            expected.append(after)
        assert returns[row, :length].tolist() == pytest.approx(expected[::-1], abs=1e-12)
        assert not returns[row, length:].any()
    order = torch.randperm(4, generator=generator)
    shuffled = lambda_returns(
        rewards[order], values[order], boundary[order], lengths[order], gamma=gamma, lambda_=lambda_
    )
    assert torch.equal(shuffled, returns[order])


def test_lambda_returns_equal_rllib_and_monte_carlo() -> None:
    rewards, values = torch.randn(2, 5, 20, generator=torch.Generator().manual_seed(3))
    lengths = torch.tensor([20, 1, 7, 13, 19])
    returns = lambda_returns(rewards, values, torch.zeros(5), lengths, gamma=0.98, lambda_=0.9)
    for row, length in enumerate(lengths.tolist()):
        ends = np.zeros(length, np.float32)
        ends[-1] = 1.0
        targets = compute_value_targets(
            values=values[row, :length].numpy(),
            rewards=rewards[row, :length].numpy(),
            terminateds=ends,
            truncateds=np.zeros(length, np.float32),
            gamma=0.98,
            lambda_=0.9,
        )
        np.testing.assert_allclose(returns[row, :length].numpy(), targets, atol=2e-6)
    whole = lambda_returns(rewards, values, torch.zeros(5), lengths, gamma=0.98, lambda_=1.0)
    torch.testing.assert_close(whole, monte_carlo_returns(rewards, lengths, gamma=0.98), atol=1e-5, rtol=0)


def test_lambda_returns_of_glued_windows_equal_the_whole() -> None:
    """At lambda = 1 with the second window's first return as the first window's boundary."""
    rewards, values = torch.randn(2, 1, 10, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    end = torch.zeros(1, dtype=torch.float64)
    options = {"gamma": 0.9, "lambda_": 1.0}
    whole = lambda_returns(rewards, values, end, torch.tensor([10]), **options)
    second = lambda_returns(rewards[:, 4:], values[:, 4:], end, torch.tensor([6]), **options)
    first = lambda_returns(rewards[:, :4], values[:, :4], second[:, 0], torch.tensor([4]), **options)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole, atol=1e-12, rtol=0)


def test_lambda_returns_gradients_no_rows_and_misfits() -> None:
    rewards, values = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    boundary = torch.tensor([0.5, -1.0], dtype=torch.float64)
    lengths = torch.tensor([4, 2])
    arguments = [tensor.requires_grad_() for tensor in (rewards, values.clone(), boundary)]
    assert torch.autograd.gradcheck(lambda r, v, b: lambda_returns(r, v, b, lengths, gamma=0.9, lambda_=0.7), arguments)
    none = torch.zeros(0, 6)
    assert lambda_returns(none, none, none[:, 0], lengths[:0], gamma=1.0, lambda_=0.5).shape == (0, 6)
    assert lambda_returns(none[:, :0], none[:, :0], none[:, 0], lengths[:0], gamma=1.0, lambda_=0.5).shape == (0, 0)
    with pytest.raises(ValueError, match="boundary_values"):
        lambda_returns(rewards, values, boundary[:1], lengths, gamma=1.0, lambda_=0.5)
