from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ray.rllib.utils.postprocessing.value_predictions import compute_value_targets

from tppo_rl.maths.advantages import (
    boundary_values,
    egae,
    gae,
    hindsight_advantages,
    length_adaptive_lambda,
)


def rows(seed: int, count: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, count, width, generator=generator, dtype=dtype)
    next_values = torch.randn(count, generator=generator, dtype=dtype)
    lengths = torch.randint(1, width + 1, (count,), generator=generator)
    return rewards, values, next_values, lengths


def hindsight(
    returns_after: torch.Tensor,
    used: torch.Tensor,
    lengths: torch.Tensor,
    num_steps: int,
    *,
    tail_corrected: torch.Tensor | None = None,
    **options: Any,
) -> torch.Tensor:
    """What hindsight adds to windows of these lengths, one a row, [B, num_steps]."""
    remaining = (lengths[:, None] - torch.arange(num_steps)).clamp(min=0)
    residuals = (returns_after - used)[:, None].expand(remaining.shape)
    corrected, plain = (hindsight_advantages(residuals, remaining, tail_corrected=c, **options) for c in (True, False))
    return plain if tail_corrected is None else torch.where(tail_corrected[:, None], corrected, plain)


def plain_loop(
    rewards: torch.Tensor, values: torch.Tensor, boundary: float, gamma: float, lambda_: float
) -> list[float]:
    """The definition, sum over k of (gamma lambda)^k delta_{t+k}, term by term in Python floats."""
    following = [*values.tolist()[1:], boundary]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards.tolist(), following, values.tolist(), strict=True)]
    return [sum((gamma * lambda_) ** k * d for k, d in enumerate(deltas[t:])) for t in range(len(deltas))]


def weighted_estimators(
    rewards: torch.Tensor, values: torch.Tensor, boundary: float, gamma: float, lambda_: float
) -> list[float]:
    """The tail-corrected definition: the k-step estimators that exist, with weights lambda^(k-1) made to sum to 1."""
    following = [*values.tolist()[1:], boundary]
    advantages = []
    for t in range(len(following)):
        estimators, weights = [], []
        for k in range(1, len(following) - t + 1):
            discounted = sum(gamma**i * float(rewards[t + i]) for i in range(k))
            estimators.append(discounted + gamma**k * following[t + k - 1] - float(values[t]))
            weights.append(lambda_ ** (k - 1))
        weighted = sum(weight * estimator for weight, estimator in zip(weights, estimators, strict=True))
        advantages.append(weighted / sum(weights))
    return advantages


def test_numbers_worked_by_hand() -> None:
    # deltas with gamma = 1: 2 - 1 = 1, 4 - 2 = 2, r + boundary - 4; lambda = 0.5.
    values = torch.tensor([[1.0, 2.0, 4.0], [1.0, 2.0, 4.0], [1.0, 2.0, 99.0]])
    rewards = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.0, 1.0], [0.0, 3.0, 99.0]])
    lengths = torch.tensor([3, 3, 2])
    finished = torch.tensor([False, True, True])
    boundary = boundary_values(values, torch.full((3,), 7.0), lengths, finished, "hold")
    assert boundary.tolist() == [4.0, 0.0, 0.0]
    advantages = egae(rewards, values, boundary, lengths, gamma=1.0, lambda_=0.5)
    assert advantages.tolist() == [[2.0, 2.0, 0.0], [1.0 + 0.5 * (2.0 - 1.5), 0.5, -3.0], [1.5, 1.0, 0.0]]
    assert boundary_values(values, torch.full((3,), 7.0), lengths, finished, "bootstrap").tolist() == [7.0, 0.0, 0.0]


def test_discount_worked_by_hand() -> None:
    # delta = [0 + 0.5 * 2 - 1, 1 + 0.5 * 6 - 2] = [0, 2]; A = [0 + 0.5 * 0.5 * 2, 2].
    advantages = egae(
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[1.0, 2.0]]),
        torch.tensor([6.0]),
        torch.tensor([2]),
        gamma=0.5,
        lambda_=0.5,
    )
    assert advantages.tolist() == [[0.5, 2.0]]


def test_tail_correction_worked_by_hand() -> None:
    # delta = [1, 2, 3] with gamma = 1. Estimators from the first token: 1, 3, 6; lambda = 0.5 weighs them 4 : 2 : 1.
    # From the second: 2, 5 weighed 2 : 1. Without correction the first are weighed 2 : 1 : 1 and the second 1 : 1.
    values = torch.tensor([[1.0, 2.0, 4.0]] * 2, dtype=torch.float64)
    boundary = torch.full((2,), 7.0, dtype=torch.float64)
    advantages = egae(
        torch.zeros_like(values),
        values,
        boundary,
        torch.tensor([3, 3]),
        gamma=1.0,
        lambda_=0.5,
        tail_corrected=torch.tensor([True, False]),
    )
    assert advantages[0].tolist() == pytest.approx([(4 + 2 * 3 + 6) / 7, 3.0, 3.0])
    assert advantages[1].tolist() == pytest.approx([(2 + 3 + 6) / 4, 3.5, 3.0]) == [2.75, 3.5, 3.0]
    # The correction changes weights alone: the boundary value is that of "bootstrap".
    finished = torch.tensor([False, True])
    mixed = boundary_values(values, boundary, torch.tensor([3, 3]), finished, "tail_corrected")
    assert mixed.tolist() == [7.0, 0.0]


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    gamma=st.floats(0.5, 1.0),
    lambda_=st.sampled_from([0.0, 0.5, 0.95, 0.999999, 1.0]) | st.floats(0.0, 1.0),
    per_row=st.booleans(),
)
def test_tail_correction_equals_the_definition(seed: int, gamma: float, lambda_: float, per_row: bool) -> None:
    rewards, values, boundary, lengths = rows(seed, 6, 9)
    corrected = torch.rand(6, generator=torch.Generator().manual_seed(seed)) < 0.5
    rates = torch.full((6,), lambda_, dtype=torch.float64) if per_row else lambda_
    advantages = egae(rewards, values, boundary, lengths, gamma=gamma, lambda_=rates, tail_corrected=corrected)
    plain = egae(rewards, values, boundary, lengths, gamma=gamma, lambda_=rates)
    assert torch.equal(advantages[~corrected], plain[~corrected])
    for row, length in enumerate(lengths.tolist()):
        arguments = rewards[row, :length], values[row, :length], float(boundary[row]), gamma, lambda_
        if corrected[row]:
            assert advantages[row, :length].tolist() == pytest.approx(weighted_estimators(*arguments), abs=1e-12)
        assert not advantages[row, length:].any()


@pytest.mark.parametrize("lambda_", [0.0, 0.5, 0.95, 0.999999])
def test_tail_correction_equals_the_closed_weights(lambda_: float) -> None:
    """(1 - lambda) / (1 - lambda^K) is what the recursion's 1 / W_K stands for; and float32 is near float64."""
    rewards, values, boundary, _ = rows(11, 3, 60)
    lengths, corrected = torch.full((3,), 60), torch.ones(3, dtype=torch.bool)
    options = {"gamma": 0.99, "lambda_": lambda_, "tail_corrected": corrected}
    advantages = egae(rewards, values, boundary, lengths, **options)
    following = torch.cat([values[:, 1:], boundary[:, None]], dim=1)
    deltas = rewards + 0.99 * following - values
    for t in (0, 17, 58, 59):
        left = 60 - t
        estimators = torch.cumsum(0.99 ** torch.arange(left).double() * deltas[:, t:], dim=1)
        weights = (1 - lambda_) / (1 - lambda_**left) * lambda_ ** torch.arange(left).double()
        torch.testing.assert_close(advantages[:, t], (weights * estimators).sum(dim=1), atol=1e-8, rtol=0)
    single = egae(rewards.float(), values.float(), boundary.float(), lengths, **options)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), advantages, atol=1e-4, rtol=1e-5)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), lambda_=st.floats(0.0, 1.0))
def test_tail_correction_of_one_estimator_or_equal_ones_changes_nothing(seed: int, lambda_: float) -> None:
    """The last token has one estimator; where the later deltas are 0, all are equal."""
    rewards, values, boundary, lengths = rows(seed, 4, 6)
    corrected = torch.ones(4, dtype=torch.bool)
    both = [
        egae(rewards, values, boundary, lengths, gamma=0.9, lambda_=lambda_, tail_corrected=rows_)
        for rows_ in (corrected, None)
    ]
    last = lengths[:, None] - 1
    torch.testing.assert_close(both[0].gather(1, last), both[1].gather(1, last), atol=1e-13, rtol=0)
    flat = torch.full((4, 6), 2.0, dtype=torch.float64)
    rewards = torch.zeros_like(flat)
    rewards[:, 0] = 3.0
    advantages = egae(
        rewards, flat, flat[:, 0], torch.full((4,), 6), gamma=1.0, lambda_=lambda_, tail_corrected=corrected
    )
    torch.testing.assert_close(advantages, rewards, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.5, 1.0), lambda_=st.floats(0.0, 1.0))
def test_equals_the_definition(seed: int, gamma: float, lambda_: float) -> None:
    rewards, values, boundary, lengths = rows(seed, 4, 9)
    advantages = egae(rewards, values, boundary, lengths, gamma=gamma, lambda_=lambda_)
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
    advantages = egae(rewards, values, boundary, lengths, gamma=0.99, lambda_=lambda_)
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
    advantages = egae(rewards, values, boundary, lengths, gamma=0.98, lambda_=0.9)
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


def test_generalized_advantages_worked_by_hand() -> None:
    # delta = [2 - 1, 1 + 0 - 2] = [1, -1]; A = [1 + 0.5 * -1, -1].
    advantages = gae(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]]), torch.tensor([2]), gamma=1.0, lambda_=0.5)
    assert advantages.tolist() == [[0.5, -1.0]]


def test_generalized_advantages_equal_rllib_and_the_definition() -> None:
    rewards, values, _, lengths = rows(14, 6, 30, torch.float32)
    advantages = gae(rewards, values, lengths, gamma=0.98, lambda_=0.9)
    exact = gae(rewards.double(), values.double(), lengths, gamma=0.98, lambda_=0.9)
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
        np.testing.assert_allclose(advantages[row, :length].numpy(), targets - value, atol=2e-6)
        expected = plain_loop(rewards[row, :length].double(), values[row, :length].double(), 0.0, 0.98, 0.9)
        assert exact[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert not advantages[row, length:].any()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 11))
def test_windows_with_an_exact_critic_equal_the_whole(seed: int, cut: int) -> None:
    """With V(s_cut) = G_cut as boundary and lambda = 1, a window's advantages are those of the whole episode."""
    rewards, values, _, _ = rows(seed, 1, 12)
    returns = rewards.flip(1).cumsum(1).flip(1)
    values[:, cut] = returns[:, cut]
    whole = gae(rewards, values, torch.tensor([12]), gamma=1.0, lambda_=1.0)
    first = egae(rewards[:, :cut], values[:, :cut], values[:, cut], torch.tensor([cut]), gamma=1.0, lambda_=1.0)
    torch.testing.assert_close(whole[:, :cut], first, atol=1e-12, rtol=0)
    second = gae(rewards[:, cut:], values[:, cut:], torch.tensor([12 - cut]), gamma=1.0, lambda_=1.0)
    torch.testing.assert_close(whole[:, cut:], second, atol=0, rtol=0)


def test_bootstrapped_window_equals_rllib_with_an_added_step() -> None:
    rewards, values, next_values, _ = rows(5, 1, 12, torch.float32)
    boundary = boundary_values(values, next_values, torch.tensor([12]), torch.tensor([False]), "bootstrap")
    advantages = egae(rewards, values, boundary, torch.tensor([12]), gamma=0.98, lambda_=0.9)
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
    whole = egae(rewards, values, end, torch.tensor([12]), gamma=gamma, lambda_=lambda_)[0]
    first = egae(rewards[:, :cut], values[:, :cut], values[:, cut], torch.tensor([cut]), gamma=gamma, lambda_=lambda_)[
        0
    ]
    second = egae(rewards[:, cut:], values[:, cut:], end, torch.tensor([12 - cut]), gamma=gamma, lambda_=lambda_)[0]
    distance = cut - torch.arange(cut, dtype=torch.float64)
    torch.testing.assert_close(whole[:cut], first + (gamma * lambda_) ** distance * second[0], atol=1e-10, rtol=0)
    torch.testing.assert_close(whole[cut:], second, atol=0, rtol=0)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), extra=st.integers(0, 5), filling=st.sampled_from([0.0, 1e30, float("nan")]))
def test_padding_changes_nothing(seed: int, extra: int, filling: float) -> None:
    rewards, values, boundary, lengths = rows(seed, 4, 7)
    plain = egae(rewards, values, boundary, lengths, gamma=0.9, lambda_=0.8)
    wide = torch.full((2, 4, 7 + extra), filling, dtype=torch.float64)
    inside = torch.arange(7) < lengths[:, None]
    wide[0, :, :7] = torch.where(inside, rewards, filling)
    wide[1, :, :7] = torch.where(inside, values, filling)
    padded = egae(wide[0], wide[1], boundary, lengths, gamma=0.9, lambda_=0.8)
    assert torch.equal(padded[:, :7], plain)
    assert not padded[:, 7:].any()
    for function in (
        lambda r, v: gae(r, v, lengths, gamma=0.9, lambda_=0.8),
        lambda r, v: egae(
            r, v, boundary, lengths, gamma=0.9, lambda_=0.8, tail_corrected=torch.tensor([True, False, True, True])
        ),
    ):
        padded = function(wide[0], wide[1])
        assert torch.equal(padded[:, :7], function(rewards, values))
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
    advantages = egae(torch.zeros_like(values), values, boundary, lengths, gamma=1.0, lambda_=lambda_)
    assert not advantages.gather(1, lengths[:, None] - 1).any()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_hold_with_lambda_one_telescopes(seed: int) -> None:
    _, values, next_values, lengths = rows(seed, 5, 8)
    boundary = boundary_values(values, next_values, lengths, torch.zeros(5, dtype=torch.bool), "hold")
    advantages = egae(torch.zeros_like(values), values, boundary, lengths, gamma=1.0, lambda_=1.0)
    closed_form = torch.where(torch.arange(8) < lengths[:, None], boundary[:, None] - values, 0.0)
    torch.testing.assert_close(advantages, closed_form, atol=1e-12, rtol=0)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), lambda_=st.floats(0.0, 1.0))
def test_hold_minus_bootstrap(seed: int, lambda_: float) -> None:
    """A_hold - A_bootstrap = -lambda^(l-1-t) (V(s_l) - V(s_{l-1}))."""
    rewards, values, next_values, lengths = rows(seed, 5, 8)
    open_ended = torch.zeros(5, dtype=torch.bool)
    hold, bootstrap = (
        egae(
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
    together = egae(rewards, values, boundary, lengths, gamma=0.9, lambda_=lambdas)
    for row, lambda_ in enumerate(lambdas.tolist()):
        alone = egae(
            rewards[row, None], values[row, None], boundary[row, None], lengths[row, None], gamma=0.9, lambda_=lambda_
        )
        torch.testing.assert_close(together[row], alone[0], atol=1e-14, rtol=0)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_the_order_of_rows_changes_nothing(seed: int) -> None:
    rewards, values, boundary, lengths = rows(seed, 6, 7)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(6, generator=generator)
    corrected = torch.rand(6, generator=generator) < 0.5
    lambdas = torch.rand(6, generator=generator, dtype=torch.float64)

    def advantages(index: torch.Tensor) -> torch.Tensor:
        return egae(
            rewards[index],
            values[index],
            boundary[index],
            lengths[index],
            gamma=0.9,
            lambda_=lambdas[index],
            tail_corrected=corrected[index],
        )

    assert torch.equal(advantages(order), advantages(torch.arange(6))[order])


def test_length_adaptive_lambda_worked_by_hand() -> None:
    lambdas = length_adaptive_lambda(torch.tensor([1, 10, 20, 40, 2000]), alpha=0.05)
    # 1 - 1 / 0.05 and 1 - 1 / 0.5 are negative, 1 - 1 / 1 = 0, 1 - 1 / 2, 1 - 1 / 100.
    assert lambdas.dtype == torch.float32
    assert lambdas.tolist() == pytest.approx([0.0, 0.0, 0.0, 0.5, 0.99], abs=1e-7)
    assert length_adaptive_lambda(torch.zeros(0, dtype=torch.int64), alpha=1.0).shape == (0,)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(lengths=st.lists(st.integers(1, 10**5), min_size=1, max_size=8), alpha=st.floats(0.01, 2.0))
def test_length_adaptive_lambda_equals_the_definition(lengths: list[int], alpha: float) -> None:
    lambdas = length_adaptive_lambda(torch.tensor(lengths), alpha=alpha)
    assert lambdas.tolist() == pytest.approx([max(0.0, 1 - 1 / (alpha * length)) for length in lengths], abs=1e-7)
    assert ((lambdas >= 0) & (lambdas <= 1)).all()
    longer = length_adaptive_lambda(torch.tensor(lengths) + 1, alpha=alpha)
    assert (longer >= lambdas).all()


def test_hindsight_worked_by_hand() -> None:
    # The boundary rises by 2: the last token gains gamma * 2, the one before gamma * lambda times that.
    arguments = torch.tensor([5.0, 4.0]), torch.tensor([3.0, 4.0]), torch.tensor([2, 1]), 3
    assert hindsight(*arguments, gamma=1.0, lambda_=0.5).tolist() == [[1.0, 2.0, 0.0], [0.0, 0.0, 0.0]]
    assert hindsight(*arguments, gamma=0.5, lambda_=0.5).tolist() == [[0.25, 1.0, 0.0], [0.0, 0.0, 0.0]]
    corrected = hindsight(*arguments, gamma=1.0, lambda_=0.5, tail_corrected=torch.tensor([True, True]))
    # Of the first token's two estimators, weighed 2 : 1, the second alone sees the boundary.
    assert corrected[0].tolist() == pytest.approx([2.0 / 3.0, 2.0, 0.0])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(seed=st.integers(0, 10**6), gamma=st.floats(0.5, 1.0), lambda_=st.floats(0.0, 1.0), corrected=st.booleans())
def test_hindsight_turns_the_used_boundary_into_the_true_return(
    seed: int, gamma: float, lambda_: float, corrected: bool
) -> None:
    rewards, values, used, lengths = rows(seed, 5, 8)
    generator = torch.Generator().manual_seed(seed + 1)
    returns_after = torch.randn(5, generator=generator, dtype=torch.float64)
    options: dict = {"gamma": gamma, "lambda_": lambda_}
    if corrected:
        options["tail_corrected"] = torch.rand(5, generator=generator) < 0.5
    with_used = egae(rewards, values, used, lengths, **options)
    with_true = egae(rewards, values, returns_after, lengths, **options)
    correction = hindsight(returns_after, used, lengths, 8, **options)
    torch.testing.assert_close(with_used + correction, with_true, atol=1e-12, rtol=0)
    for row, length in enumerate(lengths.tolist()):
        if not corrected:
            gap = float(returns_after[row] - used[row])
            expected = [gamma * (gamma * lambda_) ** (length - 1 - t) * gap for t in range(length)]
            assert correction[row, :length].tolist() == pytest.approx(expected, abs=1e-12)
        assert not correction[row, length:].any()
    wider = hindsight(returns_after, used, lengths, 11, **options)
    # Powers of long rows may be computed by other instructions.
    torch.testing.assert_close(wider[:, :8], correction, atol=0, rtol=1e-12)
    assert not wider[:, 8:].any()
    order = torch.randperm(5, generator=generator)
    if corrected:
        options["tail_corrected"] = options["tail_corrected"][order]
    shuffled = hindsight(returns_after[order], used[order], lengths[order], 8, **options)
    torch.testing.assert_close(shuffled, correction[order], atol=0, rtol=1e-12)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 11), gamma=st.floats(0.5, 1.0))
def test_hindsight_makes_a_window_whole(seed: int, cut: int, gamma: float) -> None:
    """At lambda = 1 a window plus its hindsight is that part of the finished episode, whatever the critic said."""
    rewards, values, used, _ = rows(seed, 1, 12)
    whole = gae(rewards, values, torch.tensor([12]), gamma=gamma, lambda_=1.0)
    length = torch.tensor([cut])
    window = egae(rewards[:, :cut], values[:, :cut], used, length, gamma=gamma, lambda_=1.0)
    after = sum(gamma**k * reward for k, reward in enumerate(rewards[0, cut:].tolist()))
    added = hindsight(torch.tensor([after], dtype=torch.float64), used, length, cut, gamma=gamma, lambda_=1.0)
    torch.testing.assert_close(window + added, whole[:, :cut], atol=1e-11, rtol=0)


def test_gradients() -> None:
    rewards, values, boundary, lengths = rows(9, 2, 4)
    arguments = [tensor.requires_grad_() for tensor in (rewards, values, boundary)]
    assert torch.autograd.gradcheck(lambda r, v, b: egae(r, v, b, lengths, gamma=0.9, lambda_=0.7), arguments)
    finished = torch.tensor([False, True])
    options: dict = {"gamma": 0.9, "lambda_": 0.7}
    assert torch.autograd.gradcheck(
        lambda r, v, b: egae(r, v, b, lengths, tail_corrected=~finished, **options), arguments
    )
    assert torch.autograd.gradcheck(lambda r, v: gae(r, v, lengths, **options), arguments[:2])
    returns_after = torch.tensor([1.0, -2.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda g, b: hindsight(g, b, lengths, 4, tail_corrected=~finished, **options),
        [returns_after, boundary],
    )
    for mode in ("hold", "bootstrap", "tail_corrected"):
        assert torch.autograd.gradcheck(
            lambda v, n, mode=mode: boundary_values(v, n, lengths, finished, mode), [values, boundary]
        )


def test_no_rows() -> None:
    empty, none = torch.zeros(0, 0), torch.zeros(0)
    lengths, finished = torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.bool)
    boundary = boundary_values(empty, none, lengths, finished, "hold")
    assert egae(empty, empty, boundary, lengths, gamma=1.0, lambda_=1.0).shape == (0, 0)
    wide = torch.zeros(0, 5)
    for corrected in (None, finished):
        advantages = egae(wide, wide, none, lengths, gamma=1.0, lambda_=1.0, tail_corrected=corrected)
        assert advantages.shape == (0, 5)
        added = hindsight(none, none, lengths, 5, gamma=1.0, lambda_=1.0, tail_corrected=corrected)
        assert added.shape == (0, 5)
    assert gae(wide, wide, lengths, gamma=1.0, lambda_=1.0).shape == (0, 5)


def test_misfits_are_refused() -> None:
    rewards, values, boundary, lengths = rows(1, 3, 4)
    open_ended = torch.zeros(3, dtype=torch.bool)
    with pytest.raises(ValueError, match="rewards"):
        egae(rewards[:, :3], values, boundary, lengths, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match="boundary_values"):
        egae(rewards, values, boundary[:2], lengths, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match=r"lengths must lie in 1 \.\. 4"):
        egae(rewards, values, boundary, torch.tensor([1, 2, 5]), gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match=r"lengths must lie in 1 \.\. 4"):
        boundary_values(values, boundary, torch.tensor([1, 0, 2]), open_ended, "hold")
    with pytest.raises(ValueError, match="'hold' or 'bootstrap'"):
        boundary_values(values, boundary, lengths, open_ended, "last")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'tail_corrected'"):
        boundary_values(values, boundary, lengths, open_ended, "tail")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finished"):
        boundary_values(values, boundary, lengths, open_ended[:2], "hold")
    with pytest.raises(ValueError, match="tail_corrected"):
        egae(rewards, values, boundary, lengths, gamma=1.0, lambda_=1.0, tail_corrected=open_ended[:2])
    with pytest.raises(ValueError, match="rewards"):
        gae(rewards[:2], values, lengths, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match="residuals and remaining"):
        hindsight_advantages(values, lengths, gamma=1.0, lambda_=1.0)
    with pytest.raises(ValueError, match="alpha"):
        length_adaptive_lambda(lengths, alpha=0.0)
    with pytest.raises(ValueError, match="at least 1"):
        length_adaptive_lambda(torch.tensor([3, 0]), alpha=0.05)


@pytest.mark.integration
def test_after_loading_a_batch_needs_no_other_machine_code() -> None:
    # In a process of its own: other tests have used more signatures than this one.
    script = """
import torch
from tppo_rl.maths import advantages
advantages.load_compiled()
from tppo_rl.maths.compiled import egae_rows
(loaded,) = egae_rows.signatures
torch.manual_seed(0)
values, lengths = torch.randn(5, 7), torch.tensor([1, 7, 3, 2, 5])
for lambda_ in (0.95, torch.rand(5)):
    for tail_corrected in (None, torch.tensor([True, False, True, False, False])):
        advantages.egae(
            torch.randn(5, 7), values, values[:, 0], lengths, gamma=1.0, lambda_=lambda_, tail_corrected=tail_corrected
        )
print(len(egae_rows.signatures))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    print(ended.stdout)
    assert ended.stdout.strip() == "1"
