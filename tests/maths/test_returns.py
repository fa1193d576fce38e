from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.advantages import extended_gae
from tppo_rl.maths.returns import monte_carlo_returns


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
    advantages = extended_gae(rewards, zeros, zeros[:, 0], lengths, gamma=0.97, lambda_=1.0)
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
