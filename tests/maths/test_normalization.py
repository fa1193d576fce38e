from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.maths.normalization import group_moments, normalize


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = 3 * torch.randn(7, 6, generator=generator, dtype=torch.float64) + 2
    mask = torch.arange(6) < torch.randint(0, 7, (7,), generator=generator)[:, None]
    return values, mask, torch.randint(0, 4, (7,), generator=generator)


def test_numbers_worked_by_hand() -> None:
    # Group 0 holds 1, 5, 3, 3: mean 3, std sqrt(2). Group 1 holds 7 twice: no spread. Group 2 is empty.
    values = torch.tensor([[1.0, 5.0], [7.0, 7.0], [3.0, 3.0]])
    mask, groups = torch.ones(3, 2, dtype=torch.bool), torch.tensor([0, 1, 0])
    moments = group_moments(values, mask, groups, 3)
    assert moments.dtype == torch.float64
    assert moments.tolist() == [[4.0, 12.0, 44.0], [2.0, 14.0, 98.0], [0.0, 0.0, 0.0]]
    root = 2**0.5
    centerd = normalize(values, mask, groups, moments, center=True)
    assert centerd.dtype == torch.float32
    assert centerd.flatten().tolist() == pytest.approx([-root, root, 0.0, 0.0, 0.0, 0.0])
    scaled = normalize(values, mask, groups, moments, center=False)
    assert scaled.flatten().tolist() == pytest.approx([1 / root, 5 / root, 7.0, 7.0, 3 / root, 3 / root])


@settings(deadline=None, max_examples=60, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    center=st.booleans(),
    extra=st.integers(0, 3),
    filling=st.sampled_from([0.0, 1e30, float("nan"), float("inf")]),
)
def test_equals_the_definition_whatever_the_padding(seed: int, center: bool, extra: int, filling: float) -> None:
    plain, inside, groups = batch(seed)
    values = torch.full((7, 6 + extra), filling, dtype=torch.float64)
    values[:, :6] = torch.where(inside, plain, filling)
    mask = torch.zeros(7, 6 + extra, dtype=torch.bool)
    mask[:, :6] = inside
    moments = group_moments(values, mask, groups, 4)
    result = normalize(values, mask, groups, moments, center=center)
    for group in range(4):
        here = mask & (groups == group)[:, None]
        tokens = values[here].tolist()
        expected = [float(len(tokens)), sum(tokens), sum(token**2 for token in tokens)]
        assert moments[group].tolist() == pytest.approx(expected, rel=1e-12)
        if tokens:
            mean, std = statistics.fmean(tokens), statistics.pstdev(tokens)
            std = 1.0 if std <= 1e-6 else std
            scaled = [(token - mean * center) / std for token in tokens]
            assert result[here].tolist() == pytest.approx(scaled, abs=1e-9)
    assert (result[~mask] == 0).all()


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6), cut=st.integers(0, 7), center=st.booleans())
def test_moments_of_two_learners_add_up(seed: int, cut: int, center: bool) -> None:
    values, mask, groups = batch(seed)
    whole = group_moments(values, mask, groups, 4)
    parts = [(values[index], mask[index], groups[index]) for index in (slice(0, cut), slice(cut, 7))]
    total = group_moments(*parts[0], 4) + group_moments(*parts[1], 4)
    torch.testing.assert_close(total, whole, atol=1e-9, rtol=1e-12)
    together = normalize(values, mask, groups, whole, center=center)
    apart = torch.cat([normalize(*part, total, center=center) for part in parts])
    torch.testing.assert_close(apart, together, atol=1e-6, rtol=1e-6)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(seed))
    shuffled = normalize(values[order], mask[order], groups[order], whole, center=center)
    assert torch.equal(shuffled, together[order])
    permuted = group_moments(values[order], mask[order], groups[order], 4)
    torch.testing.assert_close(permuted, whole, atol=1e-9, rtol=1e-12)


@settings(deadline=None, max_examples=40, derandomize=True)
@given(seed=st.integers(0, 10**6))
def test_each_group_has_mean_0_and_spread_1(seed: int) -> None:
    values, mask, groups = batch(seed)
    result = normalize(values, mask, groups, group_moments(values, mask, groups, 4), center=True)
    for count, total, squared in group_moments(result, mask, groups, 4).tolist():
        assert total == pytest.approx(0.0, abs=1e-9)
        assert squared == pytest.approx(count if count > 1 else 0.0, abs=1e-8)


@pytest.mark.parametrize("level", [0.0, 0.1, 33.3, 1000.1, -1e6 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_values_are_divided_by_1(level: float, dtype: torch.dtype) -> None:
    """The difference of the sums leaves a spread of rounding when the values lie far from 0."""
    values = torch.full((300, 13), level, dtype=dtype)
    mask, groups = torch.ones(300, 13, dtype=torch.bool), torch.zeros(300, dtype=torch.int64)
    moments = group_moments(values, mask, groups, 1)
    assert torch.equal(normalize(values, mask, groups, moments, center=False), values)
    assert normalize(values, mask, groups, moments, center=True).abs().max() <= 1e-9 * max(1.0, abs(level))


def test_gradients_flow_through_values_alone() -> None:
    values, mask, groups = batch(5)
    values.requires_grad_()
    moments = group_moments(values, mask, groups, 4)
    assert not moments.requires_grad
    for center in (True, False):
        assert torch.autograd.gradcheck(lambda v, c=center: normalize(v, mask, groups, moments, center=c), [values])


def test_no_rows_and_misfits() -> None:
    none, mask, groups = torch.zeros(0, 5), torch.zeros(0, 5, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
    moments = group_moments(none, mask, groups, 2)
    assert moments.tolist() == [[0.0, 0.0, 0.0]] * 2
    assert normalize(none, mask, groups, moments, center=True).shape == (0, 5)
    values, mask, groups = batch(1)
    with pytest.raises(ValueError, match="mask"):
        group_moments(values, mask[:, :3], groups, 4)
    with pytest.raises(ValueError, match=r"0 \.\. 1"):
        group_moments(values, mask, torch.full((7,), 2), 2)
    with pytest.raises(ValueError, match=r"\[G, 3\]"):
        normalize(values, mask, groups, torch.zeros(4, 2), center=True)
    with pytest.raises(ValueError, match="groups"):
        normalize(values, mask, groups[:3], torch.zeros(4, 3), center=True)
