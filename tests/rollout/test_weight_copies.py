from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from tppo_rl.rollout.weight_copies import WeightCopies


class Fused:
    """Fuses two tensors, takes a half of a third, and transposes two, as loaders of vLLM do."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.fused = torch.zeros(6, 4, dtype=dtype)
        self.half = torch.zeros(2, dtype=dtype)
        self.transposed = torch.zeros(3, 5, dtype=dtype)
        self.square = torch.zeros(3, 3, dtype=dtype)
        self.calls = 0

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        self.calls += 1
        for name, tensor in weights:
            if name in ("up", "down"):
                self.fused.narrow(0, 0 if name == "up" else 2, len(tensor)).copy_(tensor)
            elif name == "long":
                self.half.copy_(tensor[2:])
            elif name == "wide":
                self.transposed.copy_(tensor.t())
            elif name == "square":
                self.square.copy_(tensor.t())


class Scaling(Fused):
    """Computes with what it is given, so that its copies are not those of parts."""

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        super().load_weights((name, tensor * 2.0) for name, tensor in weights)


def weights(seed: int, width: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"up": (2, width), "down": (4, width), "long": (4,), "wide": (5, 3), "square": (3, 3), "unused": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def expect(model: Fused, given: dict[str, torch.Tensor], factor: float = 1.0) -> None:
    dtype = model.fused.dtype
    assert torch.equal(model.fused, torch.cat([given["up"], given["down"]]).mul(factor).to(dtype))
    assert torch.equal(model.half, given["long"][2:].mul(factor).to(dtype))
    assert torch.equal(model.transposed, given["wide"].t().mul(factor).to(dtype))
    assert torch.equal(model.square, given["square"].t().mul(factor).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loader_is_asked_once_and_its_copies_are_made_again(dtype: torch.dtype) -> None:
    model = Fused(dtype)
    copies = WeightCopies(model.load_weights)
    for seed in range(3):
        given = weights(seed)
        copies.load(given)
        expect(model, given)
    assert model.calls == 1


def test_parts_of_a_larger_storage_are_found() -> None:
    model = Fused()
    copies = WeightCopies(model.load_weights)
    for seed in range(2):
        given = {
            name: torch.cat([torch.ones(3), tensor.flatten()])[3:].view(tensor.shape)
            for name, tensor in weights(seed).items()
        }
        copies.load(given)
        expect(model, given)
    assert model.calls == 1


def test_a_loader_that_computes_is_asked_each_time() -> None:
    model = Scaling()
    copies = WeightCopies(model.load_weights)
    for seed in range(3):
        given = weights(seed)
        copies.load(given)
        expect(model, given, factor=2.0)
    assert model.calls == 3


def test_weights_of_other_shapes_go_through_the_loader_again() -> None:
    model = Fused()
    copies = WeightCopies(model.load_weights)
    copies.load(weights(0))
    with pytest.raises(RuntimeError, match="size"):
        copies.load(weights(1, width=5))
    assert model.calls == 2
    copies.load(weights(2))
    expect(model, weights(2))
