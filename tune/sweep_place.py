"""Where Tune keeps a sweep: a folder of this machine, or one of a file system that pyarrow knows."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tppo_rl.core.storage import Storage, persistently
from tppo_rl.tune.resume import SUMMARY

if TYPE_CHECKING:
    import pyarrow.fs as pafs


class SweepPlace:
    """The folder of a sweep.

    Args:
        results: Folder of all runs.
        name: Of the sweep.
    """

    def __init__(self, results: Path | Storage, name: str) -> None:
        self._storage = results.joined(name) if isinstance(results, Storage) else None
        self._folder = None if isinstance(results, Storage) else (results / name).resolve()

    def __str__(self) -> str:
        return str(self._folder) if self._storage is None else self._storage.shown

    @property
    def path(self) -> str:
        """As Tune wants it, beside `filesystem`."""
        return str(self._folder) if self._storage is None else self._storage.path

    @property
    def filesystem(self) -> pafs.FileSystem | None:
        """Of the path; None: that of this machine."""
        return None if self._storage is None else self._storage.filesystem

    def check_writable(self) -> None:
        """Checks that a place at a URI can be written.

        Raises:
            OptionError: it cannot.
        """
        if self._storage is not None:
            self._storage.check_writable("--results")

    def is_in_use(self) -> bool:
        """Whether it holds anything."""
        if self._storage is not None:
            return self._storage.is_there("--results")
        assert self._folder is not None
        return self._folder.exists() and any(self._folder.iterdir())

    def num_ended(self) -> int:
        """Number of trials that have ended."""
        if self._storage is not None:
            return sum(_is_summary(name) for name in persistently(self._storage.sizes))
        assert self._folder is not None
        return sum(1 for _ in self._folder.glob(f"*/{SUMMARY}"))

    def remove(self) -> None:
        """Removes all that it holds."""
        if self._storage is not None:
            self._storage.remove_folder("")
        elif self._folder is not None:
            shutil.rmtree(self._folder)

    @contextmanager
    def files(self) -> Iterator[Path]:
        """Gives a folder of this machine with the sweep's own files and the summaries of trials.

        At a URI they are fetched, and those that were changed are written there in the end.
        """
        if self._storage is None:
            assert self._folder is not None
            yield self._folder
            return
        storage = self._storage
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            for name in persistently(storage.sizes):
                if ("/" not in name and name.endswith(".json")) or _is_summary(name):
                    persistently(lambda: storage.get(name, folder / name))  # noqa: B023
            before = _contents(folder)
            yield folder
            for name, data in _contents(folder).items():
                if before.get(name) != data:
                    persistently(lambda: storage.write(name, data))  # noqa: B023


def _is_summary(name: str) -> bool:
    parts = name.split("/")
    return len(parts) == 2 and parts[1] == SUMMARY


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
