from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from tppo_rl.maths.advantages import boundary_values, extended_gae


def rows(seed: int, count: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, count, width, generator=generator, dtype=dtype)
    next_values = torch.randn(count, generator=generator, dtype=dtype)
    lengths = torch.randint(1, width + 1, (count,), generator=generator)
    return rewards, values, next_values, lengths


def plain_loop(
    rewards: torch.Tensor, values: torch.Tensor, boundary: float, gamma: float, lambda_: float
) -> list[float]:
    """The definition, sum over k of (gamma lambda)^k delta_{t+k}, term by term in Python floats."""
    following = [*values.tolist()[1:], boundary]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards.tolist(), following, values.tolist(), strict=True)]
    return [sum((gamma * lambda_) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def test_numbers_worked_by_hand() -> None:
    # deltas with gamma = 1: 2 - 1 = 1, 4 - 2 = 2, r + boundary - 4; lambda = 0.5.
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 99.0]])
    rewards = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 3.0, 99.0]])
    lengths = torch.tensor([3, 3, 2])
    finished = torch.tensor([False, True, True])
    boundary = boundary_values(values, torch.full((3,), 7.0), lengths, finished, "hold")
    assert boundary.tolist() == [4.0, 0.0, 0.0]
    advantages = extended_gae(rewards, values, boundary, lengths, gamma=1.0, lambda_=0.5)
    assert advantages.tolist() == [[2.0, 2.0, 0.0], [1.0 + 0.5 * (2.0 - 1.5), 0.5, -3.0], [1.5, 1.0, 0.0]]
    assert boundary_values(values, torch.full((3,), 7.0), lengths, finished, "bootstrap").tolist() == [7.0, 0.0, 0.0]


def test_discount_worked_by_hand() -> None:
    # delta = [0 + 0.5 * 2 - 1, 1 + 0.5 * 6 - 2] = [0, 2]; A = [0 + 0.5 * 0.5 * 2, 2].
    advantages = extended_gae(
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([6.0]),
        torch.tensor([2]),
        gamma=0.5,
        lambda_=0.5,
    )
    assert advantages.tolist() == [[0.5, 2.0]]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.5, 1.0), lambda_=st.floats(0.0, 1.0))
def test_equals_the_definition(seed: int, gamma: float, lambda_: float) -> None:
    rewards, values, boundary, lengths = rows(seed, 4, 9)
    advantages = extended_gae(rewards, values, boundary, lengths, gamma=gamma, lambda_=lambda_)
    for row, length in enumerate(lengths.tolist()):
        expected = plain_loop(rewards[row, :length], values[row, :length], float(boundary[row]), gamma, lambda_)
        assert advantages[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert not advantages[row, length:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("lambda_", [0.0, 0.95, 1.0])
def test_whole_episode_equals_gae_to_the_last_bit(dtype: torch.dtype, lambda_: float) -> None:
    rewards, values, next_values, _ = rows(3, 5, 40, dtype)
    lengths = torch.full((5,), 40)
    finished = torch.ones(5, dtype=torch.bool)
    boundary = boundary_values(values, next_values, lengths, finished, "hold")
    advantages = extended_gae(rewards, values, boundary, lengths, gamma=0.99, lambda_=lambda_)
    kind = np.float32 if dtype == torch.float32 else np.float64
    for row in range(5):
        reward, value = rewards[row].numpy(), values[row].numpy()
        running, expected = kind(0), np.zeros(40, kind)
        for t in reversed(range(40)):
            following = value[t + 1] if t + 1 < 40 else kind(0)
            running = reward[t] + 0.99 * following - value[t] + 0.99 * lambda_ * running
            expected[t] = running
        assert np.array_equal(advantages[row].numpy(), expected)


def test_whole_episode_equals_rllib() -> None:
    rewards, values, next_values, lengths = rows(4, 6, 30, torch.float32)
    finished = torch.ones(6, dtype=torch.bool)
    boundary = boundary_values(values, next_values, lengths, finished, "bootstrap")
    advantages = extended_gae(rewards, values, boundary, lengths, gamma=0.98, lambda_=0.9)
    for row, length in enumerate(lengths.tolist()):
        ends = np.zeros(length, np.float32)
        ends[-1] = 1.0
        value = values[row, :length].numpy()
        targets = compute_value_targets(
            values=value,
            rewards=rewards[row, :length].numpy(),
            terminateds=ends,
            truncateds=np.zeros(length, np.float32),
            gamma=0.98,
            lambda_=0.9,
        )
        # RLlib's connector takes advantages back out of the targets, which rounds in float32.
        np.testing.assert_allclose(advantages[row, :length].numpy(), targets - value, atol=2e-6)


def test_bootstrapped_window_equals_rllib_with_an_added_step() -> None:
    rewards, values, next_values, _ = rows(5, 1, 12, torch.float32)
    boundary = boundary_values(values, next_values, torch.tensor([12]), torch.tensor([False]), "bootstrap")
    advantages = extended_gae(rewards, values, boundary, torch.tensor([12]), gamma=0.98, lambda_=0.9)
    chunk_end = np.zeros(13, np.float32)
    chunk_end[11] = 1.0
    longer = np.append(values[0].numpy(), next_values.numpy())
    targets = compute_value_targets(
        values=longer,
        rewards=np.append(rewards[0].numpy(), np.float32(0)),
        terminateds=np.zeros(13, np.float32),
        truncateds=chunk_end,
        gamma=0.98,
        lambda_=0.9,
    )
    np.testing.assert_allclose(advantages[0].numpy(), (targets - longer)[:12], atol=2e-6)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 11), gamma=st.floats(0.5, 1.0), lambda_=st.floats(0.0, 1.0))
def test_glued_windows_equal_the_whole(seed: int, cut: int, gamma: float, lambda_: float) -> None:
    """A_whole = A_first(bootstrap) + (gamma lambda)^(cut - t) A_second[0]; with lambda = 1 the returns add up."""
    rewards, values, _, _ = rows(seed, 1, 12)
    end = torch.zeros(1, dtype=torch.float64)
    whole = extended_gae(rewards, values, end, torch.tensor([12]), gamma=gamma, lambda_=lambda_)[0]
    first = extended_gae(
        rewards[:, :cut], values[:, :cut], values[:, cut], torch.tensor([cut]), gamma=gamma, lambda_=lambda_
    )[0]
    second = extended_gae(
        rewards[:, cut:], values[:, cut:], end, torch.tensor([12 - cut]), gamma=gamma, lambda_=lambda_
    )[0]
    distance = cut - torch.arange(cut, dtype=torch.float64)
    torch.testing.assert_close(whole[:cut], first + (gamma * lambda_) ** distance * second[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(whole[cut:], second, atol=0, rtol=0)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), extra=st.integers(0, 5), filling=st.sampled_from([0.0, 1e30, float("nan")]))
def test_padding_changes_nothing(seed: int, extra: int, filling: float) -> None:
    rewards, values, boundary, lengths = rows(seed, 4, 7)
    plain = extended_gae(rewards, values, boundary, lengths, gamma=0.9, lambda_=0.8)
    wide = torch.full((2, 4, 7 + extra), filling, dtype=torch.float64)
    inside = torch.arange(7) < lengths[:, None]
    wide[0, :, :7] = torch.where(inside, rewards, filling)
    wide[1, :, :7] = torch.where(inside, values, filling)
    padded = extended_gae(wide[0], wide[1], boundary, lengths, gamma=0.9, lambda_=0.8)
    assert torch.equal(padded[:, :7], plain)
    assert not padded[:, 7:].any()
    finished = torch.zeros(4, dtype=torch.bool)
    assert torch.equal(
        boundary_values(wide[1], boundary, lengths, finished, "hold"),
        boundary_values(values, boundary, lengths, finished, "hold"),
    )


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), lambda_=st.floats(0.0, 1.0))
def test_hold_gives_the_last_token_no_advantage(seed: int, lambda_: float) -> None:
    _, values, next_values, lengths = rows(seed, 5, 8, torch.float32)
    boundary = boundary_values(values, next_values, lengths, torch.zeros(5, dtype=torch.bool), "hold")
    advantages = extended_gae(torch.zeros_like(values), values, boundary, lengths, gamma=1.0, lambda_=lambda_)
    assert not advantages.gather(1, lengths[:, None] - 1).any()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_hold_with_lambda_one_telescopes(seed: int) -> None:
    _, values, next_values, lengths = rows(seed, 5, 8)
    boundary = boundary_values(values, next_values, lengths, torch.zeros(5, dtype=torch.bool), "hold")
    advantages = extended_gae(torch.zeros_like(values), values, boundary, lengths, gamma=1.0, lambda_=1.0)
    closed_form = torch.where(torch.arange(8) < lengths[:, None], boundary[:, None] - values, 0.0)
    torch.testing.assert_close(advantages, closed_form, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), lambda_=st.floats(0.0, 1.0))
def test_hold_minus_bootstrap(seed: int, lambda_: float) -> None:
    """A_hold - A_bootstrap = -lambda^(l-1-t) (V(s_l) - V(s_{l-1}))."""
    rewards, values, next_values, lengths = rows(seed, 5, 8)
    open_ended = torch.zeros(5, dtype=torch.bool)
    hold, bootstrap = (
        extended_gae(
            rewards,
            values,
            boundary_values(values, next_values, lengths, open_ended, mode),
            lengths,
            gamma=1.0,
            lambda_=lambda_,
        )
        for mode in ("hold", "bootstrap")
    )
    last = values.gather(1, lengths[:, None] - 1)
    distance = lengths[:, None] - 1 - torch.arange(8)
    expected = -(lambda_ ** distance.clamp(min=0).double()) * (next_values[:, None] - last)
    torch.testing.assert_close(hold - bootstrap, torch.where(distance >= 0, expected, 0.0), atol=1e-12, rtol=0)


def test_each_row_may_have_its_own_lambda() -> None:
    rewards, values, boundary, lengths = rows(8, 3, 6)
    lambdas = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    together = extended_gae(rewards, values, boundary, lengths, gamma=0.9, lambda_=lambdas)
    for row, lambda_ in enumerate(lambdas.tolist()):
        alone = extended_gae(
            rewards[row, None], values[row, None], boundary[row, None], lengths[row, None], gamma=0.9, lambda_=lambda_
        )
        torch.testing.assert_close(together[row], alone[0], atol=1e-14, rtol=0)


def test_gradients() -> None:
    rewards, values, boundary, lengths = rows(9, 2, 4)
    arguments = [tensor.requires_grad_() for tensor in (rewards, values, boundary)]
    assert torch.autograd.gradcheck(lambda r, v, b: extended_gae(r, v, b, lengths, gamma=0.9, lambda_=0.7), arguments)
    finished = torch.tensor([False, True])
    for mode in ("hold", "bootstrap"):
        assert torch.autograd.gradcheck(
            lambda v, n, mode=mode: boundary_values(v, n, lengths, finished, mode), [values, boundary]
        )


def test_no_rows() -> None:
    empty, none = torch.zeros(0, 0), torch.zeros(0)
    lengths, finished = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    boundary = boundary_values(empty, none, lengths, finished, "hold")
    assert extended_gae(empty, empty, boundary, lengths, gamma=1.0, lambda_=1.0).shape == (0, 0)


def test_misfits_are_refused() -> None:
    rewards, values, boundary, lengths = rows(1, 3, 4)
    open_ended = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="rewards"):
        extended_gae(rewards[:, :3], values, boundary, lengths, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match="boundary_values"):
        extended_gae(rewards, values, boundary[:2], lengths, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match=r"lengths must lie in 1 \.\. 4"):
        extended_gae(rewards, values, boundary, torch.tensor([1, 2, 5]), gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match=r"lengths must lie in 1 \.\. 4"):
        boundary_values(values, boundary, torch.tensor([1, 0, 2]), open_ended, "hold")
    with pytest.raises(ValueError, match="'hold' or 'bootstrap'"):
        boundary_values(values, boundary, lengths, open_ended, "last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finished"):
        boundary_values(values, boundary, lengths, open_ended[:2], "hold")
