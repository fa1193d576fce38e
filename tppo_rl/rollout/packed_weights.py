"""Weights on their way to env-runners: one contiguous buffer in the engine's number format, and the place of each tensor in it.

Ray stores every array of a dictionary as a buffer of its own, and the engine would have to wait while they are taken out
one by one. Numbers are rounded here rather than by the engine: so half as many bytes are moved in half precision.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

ALIGNMENT = 64
"""Bytes, the width of the widest vector instructions."""


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in a buffer."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the buffer."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        """Returns the tensor in a uint8 buffer, as a view."""
        return buffer[self.offset : self.offset + self.nbytes].view(self.dtype).view(self.shape)


def places_of(
    tensors: Mapping[str, torch.Tensor], dtype: torch.dtype | None = None, *, float32: Iterable[str] = ()
) -> tuple[dict[str, Place], int]:
    """Returns places of tensors by name, and the bytes that they take; a tensor under two names (tied weights) has one place.

    Args:
        tensors: Tensors by name.
        dtype: Number format of floating-point tensors in the buffer; None: their own.
        float32: Parts of names; tensors whose name has one of them keep their number format.
    """
    places: dict[str, Place] = {}
    found: dict[tuple[int, torch.Size, tuple[int, ...], torch.dtype, torch.dtype], Place] = {}
    kept, end = tuple(float32), 0
    for name, tensor in tensors.items():
        rounded = dtype is not None and tensor.is_floating_point() and not any(part in name for part in kept)
        format_ = dtype if dtype is not None and rounded else tensor.dtype
        key = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, format_)
        if key not in found:
            found[key] = Place(format_, tuple(tensor.shape), end)
            end += -(-found[key].nbytes // ALIGNMENT) * ALIGNMENT
        places[name] = found[key]
    return places, end


def copy_to_places(tensors: Mapping[str, torch.Tensor], buffer: torch.Tensor, places: Mapping[str, Place]) -> None:
    """Copies tensors to their places in a uint8 buffer, each place once."""
    once = {place: tensors[name] for name, place in places.items()}
    torch._foreach_copy_([place.of(buffer) for place in once], list(once.values()))


def table_of(places: Mapping[str, Place]) -> str:
    """Returns places as JSON: name -> [number format, shape, bytes from the beginning of the buffer]."""
    rows = {
        name: [str(place.dtype).removeprefix("torch."), place.shape, place.offset] for name, place in places.items()
    }
    return json.dumps(rows)


def places_in(table: str | bytes) -> dict[str, Place]:
    """Returns the places in what `table_of` gave."""
    return {
        name: Place(getattr(torch, dtype), tuple(shape), offset)
        for name, (dtype, shape, offset) in json.loads(table).items()
    }


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Tensors by name in one buffer."""

    buffer: np.ndarray
    """uint8 [bytes]."""
    places: dict[str, Place]

    @classmethod
    def pack(
        cls, weights: Mapping[str, np.ndarray], dtype: torch.dtype | None = None, *, float32: Iterable[str] = ()
    ) -> PackedWeights:
        """Copies arrays into one buffer; an array under two names (tied weights) is copied once.

        Args:
            weights: Arrays by name.
            dtype: Number format of the copies of floating-point arrays; None: that of the array.
            float32: Parts of names; arrays whose name has one of them keep their number format.
        """
        tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
        places, size = places_of(tensors, dtype, float32=float32)
        buffer = np.empty(size, np.uint8)
        copy_to_places(tensors, torch.from_numpy(buffer), places)
        return cls(buffer, places)

    def unpack(self) -> dict[str, torch.Tensor]:
        """Returns the tensors by name, as views of the buffer, which are only to be read."""
        with warnings.catch_warnings():
            # Arrays of Ray's object store may not be written to.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            whole = torch.from_numpy(self.buffer)
        return {name: place.of(whole) for name, place in self.places.items()}
