"""Ratios of whole sequences: numbers by hand, gradients, invariances."""

from __future__ import annotations

import math

import pytest
import torch

from tppo_rl.maths.sequence_ratio import sequence_log_ratio


def test_means_worked_by_hand() -> None:
    log_ratio = torch.tensor([0.1, 0.3, -0.2, 0.4, 0.1])
    found = sequence_log_ratio(log_ratio, torch.tensor([0, 0, 1, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([0.2, 0.2, 0.1, 0.1, 0.1]))


def test_the_ratio_is_the_geometric_mean() -> None:
    ratios = torch.tensor([1.2, 0.9, 1.1], dtype=torch.float64)
    found = sequence_log_ratio(ratios.log()).exp()
    assert found.tolist() == pytest.approx([math.prod(ratios.tolist()) ** (1 / 3)] * 3)


def test_gradients_go_to_every_token_of_the_sequence() -> None:
    sequences = torch.tensor([0, 0, 0, 1])
    log_ratio = torch.randn(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sequence_log_ratio(x, sequences), log_ratio)
    sequence_log_ratio(log_ratio, sequences)[0].backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.0])


def test_sequences_do_not_see_one_another() -> None:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(3, generator=generator), torch.randn(5, generator=generator)
    together = sequence_log_ratio(torch.cat([first, second]), torch.tensor([0] * 3 + [1] * 5))
    torch.testing.assert_close(together, torch.cat([sequence_log_ratio(first), sequence_log_ratio(second)]))


def test_nothing_is_nothing_and_shapes_are_checked() -> None:
    assert sequence_log_ratio(torch.zeros(0)).shape == (0,)
    with pytest.raises(ValueError, match=r"one shape, got \(3,\) and \(2,\)"):
        sequence_log_ratio(torch.zeros(3), torch.zeros(2, dtype=torch.int64))
