from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import tppo_rl.kernels.onednn_linear
from tppo_rl.bench.workloads import random_model
from tppo_rl.kernels.onednn_linear import (
    FEW_ROWS,
    MANY_ROWS,
    FastLinear,
    fastest_linear,
    linear,
    onednn_is_faster,
    onednn_linear,
    use_fastest_linear,
)
from tppo_rl.learner.models import Policy


@pytest.fixture
def onednn_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tppo_rl.kernels.onednn_linear.onednn_is_faster", lambda threads: True)


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (0, 7), (64, 7), (5, 13, 7), (200, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_values_and_gradients_are_those_of_a_float64_product(shape: tuple[int, ...], with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(5, 7, generator=generator, requires_grad=True)
    bias = torch.randn(5, generator=generator, requires_grad=True) if with_bias else None
    inputs = torch.randn(*shape, generator=generator, requires_grad=True)
    wanted_from = [tensor.detach().double().requires_grad_() for tensor in (inputs, weight, bias) if tensor is not None]
    wanted = wanted_from[0] @ wanted_from[1].T + (wanted_from[2] if with_bias else 0.0)
    factor = torch.randn(wanted.shape, generator=generator)
    (wanted * factor).sum().backward()

    got = linear(inputs, weight, bias)
    (got * factor).sum().backward()
    torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip([inputs, weight, bias], wanted_from, strict=False):
        torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


def test_only_the_gradients_that_are_needed_are_computed() -> None:
    inputs, weight = torch.randn(3, 7), torch.randn(5, 7)
    assert not linear(inputs, weight).requires_grad
    frozen = linear(inputs.requires_grad_(), weight)
    frozen.sum().backward()
    assert weight.grad is None
    torch.testing.assert_close(inputs.grad, weight.sum(0).expand(3, 7))
    with torch.no_grad():
        assert not linear(inputs, weight).requires_grad


def test_other_dtypes_and_autocast_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: torch.Tensor) -> torch.Tensor:
        raise AssertionError("oneDNN was asked")

    monkeypatch.setattr("tppo_rl.kernels.onednn_linear.onednn_linear", refuse)
    inputs, weight = torch.randn(3, 7), torch.randn(5, 7)
    assert linear(inputs.double(), weight.double()).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(inputs, weight).dtype == torch.bfloat16
    with pytest.raises(AssertionError, match="asked"):
        linear(inputs, weight)


def test_a_model_that_uses_it_computes_the_same(onednn_wins: None) -> None:
    torch.manual_seed(0)
    usual = Policy(random_model("tiny"))
    fast = copy.deepcopy(usual)
    assert use_fastest_linear(fast)
    fast = pickle.loads(pickle.dumps(copy.deepcopy(fast)))
    assert any(isinstance(module, FastLinear) for module in fast.modules())
    ids = torch.randint(0, 256, (2, 9), generator=torch.Generator().manual_seed(1))
    rows, columns = torch.arange(2).repeat_interleave(8), torch.arange(8).repeat(2)
    for policy in (usual, fast):
        policy(ids, rows, columns, ids[:, 1:].reshape(-1), temperature=1.0).log_probs.sum().backward()
    for ours, theirs in zip(fast.parameters(), usual.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4)


def test_weights_that_are_exchanged_are_used(onednn_wins: None) -> None:
    model = nn.Sequential(nn.Linear(4, 3))
    use_fastest_linear(model)
    model[0].weight = nn.Parameter(torch.ones(3, 4))
    model[0].bias = None
    assert torch.equal(model(torch.ones(2, 4)), torch.full((2, 3), 4.0))


def test_the_first_measurement_on_a_machine_stands(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another choice would round otherwise, and a run that is made again would differ."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for usual in (2.0, 0.5):
        seconds = iter([usual, 1.0])
        monkeypatch.setattr("tppo_rl.kernels.onednn_linear.least_seconds", lambda call, seconds=seconds: next(seconds))
        onednn_is_faster.cache_clear()
        assert onednn_is_faster(1)
    onednn_is_faster.cache_clear()


def test_the_measurement_finds_the_faster_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for usual, onednn, wanted in [(2.0, 1.0, True), (1.1, 1.0, False), (1.0, 2.0, False)]:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / str(usual)))
        seconds = iter([usual, onednn, onednn, usual])
        monkeypatch.setattr("tppo_rl.kernels.onednn_linear.least_seconds", lambda call, seconds=seconds: next(seconds))
        onednn_is_faster.cache_clear()
        assert onednn_is_faster(1) is wanted
        assert onednn_is_faster(1, 8) is (onednn > 1.2 * usual)
    onednn_is_faster.cache_clear()


@pytest.mark.parametrize("faster", [set(), {FEW_ROWS}, {MANY_ROWS}, {FEW_ROWS, MANY_ROWS}])
def test_few_and_many_rows_have_the_library_that_is_faster_for_them(
    monkeypatch: pytest.MonkeyPatch, faster: set[int]
) -> None:
    by_onednn: list[int] = []

    def note(inputs: torch.Tensor, *rest: torch.Tensor | None) -> torch.Tensor:
        by_onednn.append(len(inputs))
        return nn.functional.linear(inputs, *rest)

    monkeypatch.setattr("tppo_rl.kernels.onednn_linear.onednn_is_faster", lambda threads, rows: rows in faster)
    monkeypatch.setattr("tppo_rl.kernels.onednn_linear.onednn_linear", note)
    weight, bias = torch.randn(5, 7), torch.randn(5)
    fastest = fastest_linear(1)
    for rows in (1, FEW_ROWS, 65, MANY_ROWS):
        inputs = torch.randn(rows, 7)
        assert torch.equal(fastest(inputs, weight, bias), nn.functional.linear(inputs, weight, bias))
    wanted = [rows for rows in (1, FEW_ROWS) if FEW_ROWS in faster]
    assert by_onednn == wanted + [rows for rows in (65, MANY_ROWS) if MANY_ROWS in faster]


def test_few_shapes_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN compiles code for each."""
    seen, product = set(), tppo_rl.kernels.onednn_linear._product

    def note(inputs: torch.Tensor, weight: torch.Tensor, *bias: torch.Tensor | None) -> torch.Tensor:
        seen.add((tuple(inputs.shape), tuple(weight.shape)))
        return product(inputs, weight, *bias)

    monkeypatch.setattr("tppo_rl.kernels.onednn_linear._product", note)
    weight = torch.randn(5, 7, requires_grad=True)
    for rows in range(65, 257):
        linear(torch.randn(rows, 7, requires_grad=True), weight).sum().backward()
    assert len(seen) == 3 * 3


def test_weights_need_no_repacking() -> None:
    weight, inputs = torch.zeros(5, 7), torch.ones(2, 7)
    onednn_linear(inputs, weight)
    weight.fill_(2.0)
    assert torch.equal(onednn_linear(inputs, weight), torch.full((2, 5), 14.0))
