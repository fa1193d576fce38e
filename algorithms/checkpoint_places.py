"""Checkpoints where RLlib and Tune put them: folders of this machine, or of any file system that pyarrow knows."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from tppo_rl.core.storage import is_uri, local_path_of, storage_at


@contextmanager
def local_copy_of(path: Any, filesystem: Any = None) -> Iterator[Path]:
    """Gives a folder of this machine to write to; what it holds in the end stands at `path`.

    Args:
        path: Folder or URI; None: a new folder, which stays.
        filesystem: Of pyarrow, to which `path` belongs; None: that of the URI, else this machine's.
    """
    if path is None:
        yield Path(tempfile.mkdtemp())
        return
    system, place = _place(path, filesystem)
    if system is None:
        yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)
        system.create_dir(place, recursive=True)
        pafs.copy_files(folder, place, destination_filesystem=system)


@contextmanager
def local_folder(path: Any, filesystem: Any = None) -> Iterator[Path]:
    """Gives a folder of this machine with what stands at `path`; the arguments are those of `local_copy_of`."""
    system, place = _place(path, filesystem)
    if system is None:
        yield Path(place)
        return
    with tempfile.TemporaryDirectory() as folder:
        pafs.copy_files(place, folder, source_filesystem=system)
        yield Path(folder)


def _place(path: Any, filesystem: Any) -> tuple[Any, str]:
    """Returns file system and place; None for folders of this machine."""
    if filesystem is None and is_uri(str(path)):
        local = local_path_of(str(path))
        if local is not None:
            return None, str(local)
        storage = storage_at(str(path), "path")
        filesystem, path = storage.filesystem, storage.path
    return (None if isinstance(filesystem, pafs.LocalFileSystem) else filesystem), str(path)
