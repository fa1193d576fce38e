"""Arrays in safetensors files, whole or cut by rows: each process writes its rows, and any reads those that it wants.

    optimizers_0_of_2.safetensors     the first rows of each array; the header's metadata say which: {"rows": {key: first row}}
    optimizers_1_of_2.safetensors     the others
    state.json                        {"!slices": ["optimizers", 2, key, shape]}: a `Sliced`

torch's own writer of such files makes a whole file in memory before it writes it, and gives no checksums. This one takes memory
for one array at a time, and its checksum is that of what was to be written, not of what a disk gives back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.core.fingerprints import Fingerprint

_ROWS = "rows"
_DTYPES = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
}
"""Names of safetensors for torch's."""


class DamagedState(ValueError):
    """A folder does not hold a whole state of this format."""


def slice_file(name: str, part: int, parts: int) -> str:
    """Name of the file that a process writes; processes count from 0."""
    return f"{name}_{part}_of_{parts}.safetensors"


SLICE_FILES = "*_of_*.safetensors"
"""Pattern of these names."""


@dataclass(frozen=True)
class Sliced:
    """What stands in a state for an array whose rows are in several files."""

    name: str
    """That of `slice_file`."""
    parts: int
    """Number of the files, some of which may have no row of it."""
    key: str
    """In each of the files."""
    shape: tuple[int, ...]
    """Of the whole array."""

    @property
    def files(self) -> list[str]:
        """Names of the files."""
        return [slice_file(self.name, part, self.parts) for part in range(self.parts)]


def write_slices(path: Path, tensors: Mapping[str, Any], first_rows: Mapping[str, int]) -> dict[str, Any]:
    """Writes the file of one process, and returns its `Fingerprint.facts`.

    Args:
        path: Of the file, which is named as `slice_file` says.
        tensors: The rows, torch tensors on any device; beside them it takes memory for one of them.
        first_rows: Where in the whole array they begin; 0 where it is not said.
    """
    taken = Fingerprint()
    # In the order of their alignment, as safetensors writes them.
    keys = sorted(tensors, key=lambda key: (-tensors[key].element_size(), key))
    with path.open("wb") as stream:
        for data in _pieces(keys, tensors, first_rows):
            taken.add(data)
            stream.write(data)
    return taken.facts()


def _pieces(
    keys: Sequence[str], tensors: Mapping[str, Any], first_rows: Mapping[str, int]
) -> Iterable[bytes | memoryview]:
    import torch

    header: dict[str, Any] = {"__metadata__": {"format": "pt", _ROWS: json.dumps(dict(first_rows))}}
    start = 0
    for key in keys:
        tensor = tensors[key]
        stop = start + tensor.nbytes
        dtype = _DTYPES[str(tensor.dtype).removeprefix("torch.")]
        header[key] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little")
    yield text
    for key in keys:
        yield memoryview(tensors[key].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


class StoredArray:
    """An array in files, of which nothing is read before it is asked for.

    `array[start:stop]` reads rows, `np.asarray(array)` the whole. Half precision is given as float32, for numpy has no bfloat16.
    """

    def __init__(self, pieces: Sequence[tuple[int, Any, str]], shape: Sequence[int], name: str) -> None:
        """Looks at the headers alone.

        Args:
            pieces: First row, open file of safetensors, and key there, of each part.
            shape: Of the whole.
            name: For messages.

        Raises:
            DamagedState: the parts have not every row once.
        """
        self.shape = tuple(shape)
        self.ndim = len(self.shape)
        self._pieces = []
        end = 0
        for first, file, key in sorted(pieces, key=lambda piece: piece[0]):
            found = tuple(file.get_slice(key).get_shape())
            if (self.ndim and first != end) or found[1:] != self.shape[1:] or len(found) != self.ndim:
                break
            end = first + found[0] if self.ndim else 1
            self._pieces.append((first, end, file, key))
        if end != (self.shape[0] if self.ndim else 1) or len(self._pieces) != len(pieces):
            raise DamagedState(f"{name}: the slices do not make up an array of shape {self.shape}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        assert step == 1, "rows that follow one another"
        return self._read(start, max(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("it is in a file: to read it is to copy it")
        if self.ndim:
            whole = self._read(0, len(self))
        else:
            ((_, _, file, key),) = self._pieces
            whole = _numpy(file.get_tensor(key))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _read(self, start: int, stop: int) -> np.ndarray:
        found = [
            _numpy(file.get_slice(key)[max(start, first) - first : min(stop, end) - first])
            for first, end, file, key in self._pieces
            if max(start, first) < min(stop, end)
        ]
        if not found:
            _, _, file, key = self._pieces[0]
            return _numpy(file.get_slice(key)[0:0])
        return found[0] if len(found) == 1 else np.concatenate(found)


def open_slices(sliced: Sliced, opened: Callable[[str], Any]) -> StoredArray:
    """Returns the array that lies in several files.

    Args:
        sliced: Says where.
        opened: Opens a file by its name, with safetensors for torch.

    Raises:
        DamagedState: a row is in none of them.
    """
    pieces = []
    for name in sliced.files:
        file = opened(name)
        first = json.loads((file.metadata() or {}).get(_ROWS, "{}")).get(sliced.key, 0)
        if sliced.key in file.keys():  # noqa: SIM118 (it is no dict)
            pieces.append((first, file, sliced.key))
    return StoredArray(pieces, sliced.shape, f"{sliced.key} of {sliced.files[0]}")


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    if tensor.is_floating_point():
        tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    return np.asarray(tensor.numpy())
