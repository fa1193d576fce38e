"""File systems of pyarrow for tests: one that is killed, fails or waits at an operation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from tppo_rl.core.storage import Storage


class Killed(BaseException):
    """What stands for the end of the process; nothing may catch it."""


class Watched(pafs.FileSystemHandler):
    """A folder of this machine whose changes are counted, each after `before` was called with its words.

    Files are not replaced whole: a change that is ended in the midst of a file leaves half of what was to be written.
    """

    def __init__(self, folder: Path, before: Callable[[str], None] = lambda words: None) -> None:
        self.inner = pafs.SubTreeFileSystem(str(folder), pafs.LocalFileSystem())
        self.before = before

    def get_type_name(self) -> str:
        return "watched"

    def normalize_path(self, path: str) -> str:
        return str(self.inner.normalize_path(path))

    def get_file_info(self, paths: list[str]) -> Any:
        return self.inner.get_file_info(paths)

    def get_file_info_selector(self, selector: pafs.FileSelector) -> Any:
        return self.inner.get_file_info(selector)

    def create_dir(self, path: str, recursive: bool) -> None:
        self.before(f"create_dir {path}")
        self.inner.create_dir(path, recursive=recursive)

    def delete_dir(self, path: str) -> None:
        # One file after the other, as object stores do it.
        for info in self.inner.get_file_info(pafs.FileSelector(path, recursive=True)):
            if info.type == pafs.FileType.File:
                self.delete_file(info.path)
        self.before(f"delete_dir {path}")
        self.inner.delete_dir(path)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        raise NotImplementedError

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError

    def delete_file(self, path: str) -> None:
        self.before(f"delete_file {path}")
        self.inner.delete_file(path)

    def move(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def copy_file(self, src: str, dest: str) -> None:
        raise NotImplementedError

    def open_input_stream(self, path: str) -> Any:
        return self.inner.open_input_stream(path)

    def open_input_file(self, path: str) -> Any:
        return self.inner.open_input_file(path)

    def open_output_stream(self, path: str, metadata: Any) -> Any:
        self.before(f"open {path}")
        return pa.PythonFile(_Writer(self, path), mode="w")

    def open_append_stream(self, path: str, metadata: Any) -> Any:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    __hash__ = None  # type: ignore[assignment]


class _Writer:
    """A file that is being written."""

    def __init__(self, watched: Watched, path: str) -> None:
        self._watched = watched
        self._path = path
        self._stream = watched.inner.open_output_stream(path)
        self.closed = False

    def write(self, data: Any) -> int:
        half = len(data) // 2
        self._stream.write(data[:half])
        try:
            self._watched.before(f"write {self._path}")
        except BaseException:
            self.close()
            raise
        self._stream.write(data[half:])
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._stream.close()


def watched_storage(folder: Path, before: Callable[[str], None] = lambda words: None) -> Storage:
    """A place in `folder`, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    return Storage("watched://kept/run", pafs.PyFileSystem(Watched(folder, before)), "kept/run")


def killing_after(count: int) -> Callable[[str], None]:
    """Ends the process at change `count`, and at all that come after it."""
    left = count

    def before(words: str) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed(words)

    return before
