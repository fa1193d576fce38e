from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.subsampling import UNIFORM_SHARE, gradient_bounds, inclusion_probabilities, systematic_sample

FRAGMENTS = st.lists(
    st.tuples(st.floats(0, 1e3) | st.sampled_from([0.0, 1e-30]), st.integers(1, 64)), min_size=1, max_size=30
)


def parts(fragments: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    bounds, lengths = zip(*fragments, strict=True)
    return torch.tensor(bounds, dtype=torch.float64), torch.tensor(lengths)


def test_bounds_worked_by_hand() -> None:
    advantages = torch.tensor([[2.0, -1.0, 7.0], [0.0, 5.0, 5.0]])
    log_probs = torch.tensor([[0.5, 0.9, 0.1], [0.5, 1.0, 0.2]]).log()
    mask = torch.tensor([[True, True, False], [True, True, False]])
    # 2 * 0.5 + 1 * 0.1, and 0 * 0.5 + 5 * 0
    assert gradient_bounds(advantages, log_probs, mask).tolist() == pytest.approx([1.1, 0.0], abs=1e-6)
    with pytest.raises(ValueError, match="shape"):
        gradient_bounds(advantages, log_probs[:1], mask)


def test_bounds_are_above_the_gradient_of_the_logits() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(20, 7, generator=generator, dtype=torch.float64)).requires_grad_()
    tokens, advantages = torch.arange(20) % 7, torch.randn(20, generator=generator, dtype=torch.float64)
    log_probs = logits.log_softmax(dim=1)[torch.arange(20), tokens]
    (gradient,) = torch.autograd.grad((advantages * log_probs).sum(), logits)
    bounds = gradient_bounds(advantages[:, None], log_probs[:, None].detach(), torch.ones(20, 1, dtype=torch.bool))
    assert bool((gradient.norm(dim=1) <= math.sqrt(2) * bounds + 1e-12).all())
    assert bool((gradient.norm(dim=1) >= bounds - 1e-12).all()), "and no more than sqrt(2) above it"


def test_chances_worked_by_hand() -> None:
    bounds, lengths = torch.tensor([3.0, 1.0, 0.0]), torch.tensor([9, 1, 10])
    # wanted 3 / 3 = 1, 1 and 0, of 10 tokens in all; to them 0.7 / 10, and 0.3 / 20 to every one: 0.085, 0.085, 0.015
    probabilities = inclusion_probabilities(bounds, lengths, 0.25)
    assert probabilities.tolist() == pytest.approx([0.425, 0.425, 0.075])
    # At a share of 0.6 the first two are certain, and the third has the two tokens that are left.
    assert inclusion_probabilities(bounds, lengths, 0.6).tolist() == pytest.approx([1.0, 1.0, 0.2])


@settings(max_examples=200, deadline=None)
@given(FRAGMENTS, st.floats(0.01, 1.0))
def test_chances_are_worth_the_share_and_no_weight_is_boundless(
    fragments: list[tuple[float, int]], share: float
) -> None:
    bounds, lengths = parts(fragments)
    probabilities = inclusion_probabilities(bounds, lengths, share)
    assert float((probabilities * lengths).sum()) == pytest.approx(share * float(lengths.sum()), rel=1e-6)
    assert float(probabilities.max()) <= 1 + 1e-9
    assert float(probabilities.min()) >= UNIFORM_SHARE * share * (1 - 1e-9)
    wanted = bounds / lengths.sqrt()
    for one in range(len(bounds)):
        assert bool((probabilities[wanted >= wanted[one]] >= probabilities[one] - 1e-9).all()), (
            "more to learn, less likely"
        )


def test_a_share_of_1_takes_all_and_bad_arguments_are_refused() -> None:
    bounds, lengths = torch.tensor([3.0, 0.0, 2.0]), torch.tensor([5, 7, 0])
    assert inclusion_probabilities(bounds, lengths, 1.0).tolist() == pytest.approx([1.0, 1.0, 1.0])
    assert inclusion_probabilities(bounds, lengths, 0.3)[2] == 1, "a fragment without tokens costs nothing"
    assert len(inclusion_probabilities(torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5)) == 0
    for share in (0.0, 1.1):
        with pytest.raises(ValueError, match="share"):
            inclusion_probabilities(bounds, lengths, share)
    with pytest.raises(ValueError, match="at least 0"):
        inclusion_probabilities(-bounds, lengths, 0.5)
    with pytest.raises(ValueError, match="at least 0"):
        inclusion_probabilities(bounds * math.nan, lengths, 0.5)
    with pytest.raises(ValueError, match="lengths"):
        inclusion_probabilities(bounds, lengths[:1], 0.5)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=30), st.integers(0, 2**32))
def test_as_many_are_drawn_as_chances_add_up_to(probabilities: list[float], seed: int) -> None:
    drawn = systematic_sample(torch.tensor(probabilities, dtype=torch.float64), np.random.default_rng(seed))
    assert abs(len(drawn) - sum(probabilities)) < 1 + 1e-9
    assert drawn.tolist() == sorted(set(drawn.tolist()))
    assert {index for index, probability in enumerate(probabilities) if probability == 1} <= set(drawn.tolist())


def test_each_is_drawn_with_its_chance_so_that_weighted_sums_are_right() -> None:
    generator = np.random.default_rng(0)
    probabilities = torch.tensor([0.05, 0.3, 1.0, 0.7, 0.5, 0.15], dtype=torch.float64)
    values = torch.tensor([4.0, -2.0, 1.0, 3.0, -5.0, 2.0], dtype=torch.float64)
    repeats = 20_000
    counts, sums = torch.zeros(6), torch.zeros(repeats, dtype=torch.float64)
    for repeat in range(repeats):
        drawn = systematic_sample(probabilities, generator)
        counts[drawn] += 1
        sums[repeat] = (values / probabilities)[drawn].sum()
    deviation = (probabilities * (1 - probabilities) / repeats).sqrt()
    assert bool(((counts / repeats - probabilities).abs() <= 4 * deviation + 1e-12).all()), counts / repeats
    assert float(sums.mean()) == pytest.approx(float(values.sum()), abs=4 * float(sums.std()) / math.sqrt(repeats))


def test_for_its_tokens_the_variance_is_a_third_of_that_of_equal_chances() -> None:
    # Norms of gradients with a heavy tail; fragments are drawn independently here, which is near to the draw.
    generator = np.random.default_rng(1)
    norms, lengths = (
        torch.from_numpy(generator.exponential(size=200) ** 2),
        torch.from_numpy(generator.integers(1, 33, 200)),
    )

    def variance(probabilities: torch.Tensor) -> float:
        return float(((1 - probabilities) / probabilities * norms.square()).sum())

    ours = inclusion_probabilities(norms, lengths, 0.4)
    assert variance(ours) < variance(torch.full((200,), 0.4, dtype=torch.float64)) / 3
