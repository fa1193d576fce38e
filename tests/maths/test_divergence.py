from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.maths import divergence

ESTIMATORS = [divergence.k1, divergence.k2, divergence.k3]


def test_numbers_worked_by_hand() -> None:
    log_probs = torch.tensor([math.log(0.5)], dtype=torch.float64)
    sampling = torch.tensor([math.log(0.25)], dtype=torch.float64)  # ratio 2, log-ratio log 2
    assert float(divergence.k1(log_probs, sampling)) == pytest.approx(-math.log(2))
    assert float(divergence.k2(log_probs, sampling)) == pytest.approx(math.log(2) ** 2 / 2)
    assert float(divergence.k3(log_probs, sampling)) == pytest.approx(2 - 1 - math.log(2))


@pytest.mark.parametrize("estimator", [divergence.k1, divergence.k3])
def test_unbiased(estimator) -> None:
    """The expectation under q over the whole vocabulary is KL(q || p)."""
    generator = torch.Generator().manual_seed(0)
    log_p, log_q = torch.randn(2, 30, generator=generator, dtype=torch.float64).log_softmax(dim=-1)
    expected = (log_q.exp() * (log_q - log_p)).sum()
    assert float((log_q.exp() * estimator(log_p, log_q)).sum()) == pytest.approx(float(expected), abs=1e-12)


def test_never_negative_and_small_near_equality() -> None:
    gaps = torch.tensor([0.0, 1e-4, -1e-4, 1.0, -1.0, 300.0, -300.0])
    for estimator in (divergence.k2, divergence.k3):
        values = estimator(gaps, torch.zeros(7))
        assert (values >= 0).all()
        assert torch.isfinite(values).all()
    # exp(x) - 1 - x in plain float32 loses every digit here.
    assert float(divergence.k3(torch.tensor([1e-4]), torch.zeros(1))) == pytest.approx(5e-9, rel=0.05)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck_and_shapes(estimator) -> None:
    arguments = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pair = [row.clone().requires_grad_() for row in arguments]
    assert torch.autograd.gradcheck(estimator, pair)
    with pytest.raises(ValueError, match="shape"):
        estimator(torch.zeros(3), torch.zeros(2))


PAIRS = st.lists(st.tuples(st.floats(-15, 0), st.floats(-15, 0)), min_size=1, max_size=12)


@given(PAIRS, st.randoms(use_true_random=False))
def test_equals_the_definition_in_any_order(pairs, random) -> None:
    random.shuffle(pairs)
    log_p, log_q = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    for estimator, definition in (
        (divergence.k1, lambda p, q: q - p),
        (divergence.k2, lambda p, q: (p - q) ** 2 / 2),
        (divergence.k3, lambda p, q: math.exp(p) / math.exp(q) - 1 - (p - q)),
    ):
        expected = [definition(p, q) for p, q in pairs]
        assert estimator(log_p, log_q).tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
