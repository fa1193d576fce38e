"""Weights on their way to env-runners: one contiguous buffer in the engine's number format, and the place of each tensor in it.

Ray stores every array of a dictionary as a buffer of its own, and the engine would have to wait while they are taken out
one by one. Numbers are rounded here rather than by the engine: so half as many bytes are moved in half precision.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

_ALIGNMENT = 64
"""Bytes, the width of the widest vector instructions."""


@dataclass(frozen=True)
class _Place:
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the buffer."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Tensors by name in one buffer."""

    buffer: np.ndarray
    """uint8 [bytes]."""
    places: dict[str, _Place]

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
        places: dict[str, _Place] = {}
        parts: dict[tuple[int, tuple[int, ...], str, torch.dtype], tuple[_Place, np.ndarray]] = {}
        kept, end = tuple(float32), 0
        for name, array in weights.items():
            format_ = torch.from_numpy(np.empty(0, array.dtype)).dtype
            if dtype is not None and format_.is_floating_point and not any(part in name for part in kept):
                format_ = dtype
            key = (array.ctypes.data, array.shape, array.dtype.str, format_)
            if key not in parts:
                parts[key] = (_Place(format_, array.shape, end), array)
                end += -(-parts[key][0].nbytes // _ALIGNMENT) * _ALIGNMENT
            places[name] = parts[key][0]
        buffer = np.empty(end, np.uint8)
        whole = torch.from_numpy(buffer)
        for place, array in parts.values():
            _view(whole, place).copy_(torch.from_numpy(array))
        return cls(buffer, places)

    def unpack(self) -> dict[str, torch.Tensor]:
        """Returns the tensors by name, as views of the buffer, which are only to be read."""
        with warnings.catch_warnings():
            # Arrays of Ray's object store may not be written to.
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")
            whole = torch.from_numpy(self.buffer)
        return {name: _view(whole, place) for name, place in self.places.items()}


def _view(whole: torch.Tensor, place: _Place) -> torch.Tensor:
    return whole[place.offset : place.offset + place.nbytes].view(place.dtype).view(place.shape)
