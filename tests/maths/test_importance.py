from __future__ import annotations

import math

import pytest
import torch

from tppo_rl.maths.importance import effective_sample_size, importance_weights


def test_numbers_worked_by_hand() -> None:
    log_probs = torch.tensor([0.5, 0.2, 0.1], dtype=torch.float64).log()
    behaviour = torch.tensor([0.25, 0.2, 0.2], dtype=torch.float64).log()
    weights = importance_weights(log_probs, behaviour)
    assert weights.tolist() == pytest.approx([2.0, 1.0, 0.5])
    # (2 + 1 + 0.5)^2 / (4 + 1 + 0.25)
    assert effective_sample_size(3.5, 5.25) == pytest.approx(12.25 / 5.25)


def test_equal_weights_count_fully_and_one_heavy_weight_once() -> None:
    assert effective_sample_size(8 * 3.0, 8 * 9.0) == pytest.approx(8.0)
    assert effective_sample_size(1e6 + 7, 1e12 + 7) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(ValueError, match="positive"):
        effective_sample_size(0.0, 0.0)


def test_finite_and_differentiable() -> None:
    weights = importance_weights(torch.tensor([900.0, -900.0]), torch.zeros(2))
    assert weights.tolist() == pytest.approx([math.exp(20), math.exp(-20)], rel=1e-5)
    log_probs = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: importance_weights(x, torch.zeros(5)), [log_probs])
    with pytest.raises(ValueError, match="shape"):
        importance_weights(torch.zeros(2), torch.zeros(3))
