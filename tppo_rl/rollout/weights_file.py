"""A file in shared memory that holds an engine's new weights, as one process writes it and others map it.

    8 bytes   length of the table, little endian
    table     from `table_of`
    tensors   from the next multiple of `ALIGNMENT` on

The pages of shared memory cost several times as much when they are new as when they are written again, to whoever writes them and
to whoever maps them. So a file is made for tensors of certain names and shapes, and written again at each update. Nothing tells a
reader of a change: the writer does, and writes only while nobody reads.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from tppo_rl.rollout.packed_weights import ALIGNMENT, PackedWeights, Place, copy_to_places, places_in, table_of

_LENGTH = 8


class WeightsFile:
    """A file for tensors of certain places, in the process that writes it.

    Args:
        path: Where the file is made.
        places: From `places_of`.
        size: Bytes of the tensors.

    Raises:
        OSError: there is no room; no file is left.
    """

    def __init__(self, path: Path, places: Mapping[str, Place], size: int) -> None:
        self.path = path
        self.places = dict(places)
        table = table_of(places).encode()
        start = _start(len(table))
        with path.open("xb+") as file:
            try:
                # Without room a write to the mapping would kill the process.
                os.posix_fallocate(file.fileno(), 0, start + size)
            except OSError:
                self.unlink()
                raise
            file.write(len(table).to_bytes(_LENGTH, "little") + table)
            file.flush()
            whole = mmap.mmap(file.fileno(), start + size)
        # The mapping ends with the last view of it.
        self._tensors = torch.from_numpy(np.frombuffer(whole, np.uint8))[start:]

    def write(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes tensors to the file's places, rounded to their number formats."""
        copy_to_places(tensors, self._tensors, self.places)

    def unlink(self) -> None:
        """Removes the file's name. Its memory goes back when the writer and those that have mapped it have let go, or are dead."""
        self.path.unlink(missing_ok=True)


def mapped(path: Path) -> dict[str, torch.Tensor]:
    """Returns the tensors of a file as views of its memory, which are only to be read, and change when the file is written."""
    with path.open("rb") as file:
        whole = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    length = int.from_bytes(whole[:_LENGTH], "little")
    places = places_in(whole[_LENGTH : _LENGTH + length])
    return PackedWeights(np.frombuffer(whole, np.uint8)[_start(length) :], places).unpack()


def _start(length: int) -> int:
    return -(-(_LENGTH + length) // ALIGNMENT) * ALIGNMENT
