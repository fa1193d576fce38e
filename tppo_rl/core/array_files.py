"""Writes safetensors files piece by piece, with the checksum of what was to be written.

torch's own writer of such files makes a whole file in memory before it writes it, gives no checksums, and lets no other thread of
the process go on meanwhile. This one takes memory for one array at a time, where that is not on the CPU in one piece. Its checksum is
that of what was to be written, not of what a disk gives back. Other threads wait for nothing but the Python between two arrays.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.core.fingerprints import Fingerprint

_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Names of safetensors for those of torch and numpy."""


def write_arrays(path: Path, arrays: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Writes a safetensors file, and returns its `Fingerprint.facts`.

    Args:
        path: Of the file.
        arrays: By key, numpy arrays or torch tensors on any device.
        metadata: Texts for its header, beside the format.

    Raises:
        TypeError: safetensors has no name for the dtype of an array.
    """
    taken = Fingerprint()
    with path.open("wb") as stream:
        for data in _pieces(arrays, metadata or {}):
            taken.add(data)
            stream.write(data)
    return taken.facts()


def _pieces(arrays: Mapping[str, Any], metadata: Mapping[str, str]) -> Iterable[bytes | memoryview]:
    # In the order of their alignment, as safetensors writes them.
    keys = sorted(arrays, key=lambda key: (-arrays[key].itemsize, key))
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    start = 0
    for key in keys:
        array = arrays[key]
        stop = start + array.nbytes
        header[key] = {"dtype": _dtype(key, array), "shape": list(array.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for key in keys:
        yield _bytes_of(arrays[key]).data


def _dtype(key: str, array: Any) -> str:
    name = array.dtype.name if isinstance(array, np.ndarray) else str(array.dtype).removeprefix("torch.")
    if name not in _DTYPES or (isinstance(array, np.ndarray) and not array.dtype.isnative):
        raise TypeError(f"{key}: a checkpoint holds no arrays of {array.dtype}")
    return _DTYPES[name]


def _bytes_of(array: Any) -> np.ndarray:
    """The bytes of an array, uint8, without a copy where it is in one piece on the CPU."""
    if isinstance(array, np.ndarray):
        return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    import torch

    own: np.ndarray = array.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return own
