"""Arrays in safetensors files, whole or cut by rows: each process writes its rows, and any reads those that it wants.

optimizers_0_of_2.safetensors     the first rows of each array; the header's metadata say which: {"rows": {key: first row}}
optimizers_1_of_2.safetensors     the others
state.json                        {"!slices": ["optimizers", 2, key, shape]}: a `Sliced`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.core.array_files import write_arrays

_ROWS = "rows"


class DamagedState(ValueError):
    """A folder does not hold a whole state of this format."""


def slice_file(name: str, part: int | str, parts: int | str) -> str:
    """Name of the file that a process writes; processes count from 0. Patterns are made of patterns."""
    return f"{name}_{part}_of_{parts}.safetensors"


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
    return write_arrays(path, tensors, {_ROWS: json.dumps(dict(first_rows))})


class ArrayFile:
    """An open safetensors file, whole arrays or those of one process."""

    def __init__(self, path: Path) -> None:
        from safetensors import safe_open

        self.file: Any = safe_open(str(path), framework="pt")
        rows = json.loads((self.file.metadata() or {}).get(_ROWS, "{}"))
        self.first_rows = {key: int(rows.get(key, 0)) for key in self.file.keys()}  # noqa: SIM118 (it is no dict)
        """By the key of each array: where its rows begin in the whole one."""


class StoredArray:
    """An array in files, of which nothing is read before it is asked for.

    `array[start:stop]` reads rows, `np.asarray(array)` the whole. bfloat16 is given as float32, for numpy does not have it.
    """

    def __init__(self, key: str, files: Sequence[ArrayFile], shape: Sequence[int]) -> None:
        """Looks at the headers alone.

        Args:
            key: In the files.
            files: Some may have no row of it.
            shape: Of the whole.

        Raises:
            DamagedState: the files do not have every row once.
        """
        self.shape = tuple(shape)
        self.ndim = len(self.shape)
        self._key = key
        self._pieces: list[tuple[int, int, Any]] = []
        end, fits = 0, True
        for one in sorted((one for one in files if key in one.first_rows), key=lambda one: one.first_rows[key]):
            found, first = tuple(one.file.get_slice(key).get_shape()), one.first_rows[key]
            fits &= first == end and len(found) == self.ndim and found[1:] == self.shape[1:]
            end = first + (found[0] if found else 1)
            self._pieces.append((first, end, one.file))
        if not self._pieces or not fits or end != (self.shape[0] if self.shape else 1):
            raise DamagedState(f"{key}: its slices do not make up an array of shape {self.shape}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(len(self))
        assert step == 1, "rows that follow one another"
        return self._read(start, max(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("it is in files: to read it is to copy it")
        whole = self._read(0, len(self)) if self.ndim else _numpy(self._pieces[0][2].get_tensor(self._key))
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def _read(self, start: int, stop: int) -> np.ndarray:
        found = [
            _numpy(file.get_slice(self._key)[max(start, first) - first : min(stop, end) - first])
            for first, end, file in self._pieces
            if max(start, first) < min(stop, end)
        ]
        if not found:
            return _numpy(self._pieces[0][2].get_slice(self._key)[0:0])
        return found[0] if len(found) == 1 else np.concatenate(found)


def _numpy(tensor: Any) -> np.ndarray:
    import torch

    return np.asarray((tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy())
