"""Weights on their way to env-runners: one contiguous buffer, and the place of each tensor in it.

Ray stores every array of a dictionary as a buffer of its own, and the engine would have to wait while they are taken out
one by one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

_ALIGNMENT = 64
"""Bytes, the width of the widest vector instructions."""


@dataclass(frozen=True)
class _Place:
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the beginning of the buffer."""


@dataclass(frozen=True, eq=False)
class PackedWeights:
    """Tensors by name in one buffer."""

    buffer: np.ndarray
    """uint8 [bytes]."""
    places: dict[str, _Place]

    @classmethod
    def pack(cls, weights: Mapping[str, np.ndarray]) -> PackedWeights:
        """Copies arrays into one buffer; an array under two names (tied weights) is copied once."""
        places: dict[str, _Place] = {}
        offsets: dict[tuple[int, tuple[int, ...], str], int] = {}
        parts: list[tuple[int, np.ndarray]] = []
        end = 0
        for name, array in weights.items():
            key = (array.ctypes.data, array.shape, array.dtype.str)
            if key not in offsets:
                offsets[key] = end
                parts.append((end, array))
                end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
            places[name] = _Place(array.dtype.str, array.shape, offsets[key])
        buffer = np.empty(end, np.uint8)
        for offset, array in parts:
            _view(buffer, _Place(array.dtype.str, array.shape, offset))[...] = array
        return cls(buffer, places)

    def unpack(self) -> dict[str, np.ndarray]:
        """Returns the tensors by name, as views of the buffer."""
        return {name: _view(self.buffer, place) for name, place in self.places.items()}


def _view(buffer: np.ndarray, place: _Place) -> np.ndarray:
    return np.ndarray(place.shape, place.dtype, buffer, place.offset)
