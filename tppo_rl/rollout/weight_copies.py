"""Copies of new weights into a vLLM model in this process, in place.

vLLM loads a checkpoint by its own code for each architecture. That code fuses and slices tensors in Python, which takes many
times as long as the copies themselves. Sources and targets of the copies depend on names and shapes alone, so they are
noted once and made again at each update.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class _Copy:
    """A copy of a part of the tensor `source` to `into`."""

    into: torch.Tensor
    source: str
    offset: int
    """Elements from the first one of `source`."""
    size: tuple[int, ...]
    stride: tuple[int, ...]

    def part(self, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        whole = weights[self.source]
        # A square matrix that was transposed has the shape of the whole, but not its strides.
        if self.size == whole.shape and self.stride == whole.stride():
            return whole
        return whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)


class WeightCopies:
    """Loads weights into a model whose parameters stay in the memory that they were loaded to."""

    def __init__(self, load_weights: Callable[[Iterable[tuple[str, torch.Tensor]]], Any]) -> None:
        """Takes the model's own loader, its `load_weights` in vLLM."""
        self._load_weights = load_weights
        self._layout: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self._copies: list[_Copy] | None = None

    @torch.no_grad()
    def load(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Loads contiguous tensors by their transformers names."""
        layout = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
        if layout != self._layout:
            self._copies = self._load_and_note(weights)
            self._layout = layout
        elif self._copies is None:
            self._load_weights(weights.items())
        else:
            torch._foreach_copy_([copy.into for copy in self._copies], [copy.part(weights) for copy in self._copies])

    def _load_and_note(self, weights: Mapping[str, torch.Tensor]) -> list[_Copy] | None:
        """Returns the copies that the model's loader made; None if it did more than copy parts."""
        note = _NoteCopies(weights)
        with note:
            self._load_weights(weights.items())
        return note.copies if note.complete else None


class _NoteCopies(TorchDispatchMode):
    """Notes the copies out of given tensors that are made in its context."""

    def __init__(self, weights: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.copies: list[_Copy] = []
        self.complete = True
        self._names = {tensor.untyped_storage().data_ptr(): name for name, tensor in weights.items()}
        self._offsets = {name: tensor.storage_offset() for name, tensor in weights.items()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._note(*args[:2])
        return func(*args, **(kwargs or {}))

    def _note(self, into: torch.Tensor, source: torch.Tensor) -> None:
        name = self._names.get(source.untyped_storage().data_ptr())
        if name is None or into.shape != source.shape:
            self.complete = False
            return
        offset = source.storage_offset() - self._offsets[name]
        self.copies.append(_Copy(into, name, int(offset), tuple(source.shape), source.stride()))
