"""Copies of new weights into a vLLM model in this process, in place.

vLLM loads a checkpoint by its own code for each architecture. That code fuses and slices tensors in Python, which takes many
times as long as the copies themselves. Sources and targets of the copies depend on names and shapes alone, so they are
noted once and made again at each update.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter
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
        # By addresses: tensors of one buffer share a storage.
        self._tensors = sorted(
            ((tensor.data_ptr(), name, tensor) for name, tensor in weights.items() if tensor.numel()),
            key=itemgetter(0, 1),
        )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._note(*args[:2])
        return func(*args, **(kwargs or {}))

    def _note(self, into: torch.Tensor, source: torch.Tensor) -> None:
        found = self._whole_of(source)
        if found is None or into.shape != source.shape:
            self.complete = False
            return
        start, name = found
        offset = (source.data_ptr() - start) // source.element_size()
        self.copies.append(_Copy(into, name, offset, tuple(source.shape), source.stride()))

    def _whole_of(self, source: torch.Tensor) -> tuple[int, str] | None:
        """Returns address and name of the given tensor that `source` is a part of; None if it is a part of none."""
        index = bisect_right(self._tensors, source.data_ptr(), key=itemgetter(0)) - 1
        if index < 0:
            return None
        start, name, tensor = self._tensors[index]
        return (start, name) if source.data_ptr() < start + tensor.nbytes else None
