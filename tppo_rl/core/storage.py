"""Folders of file systems that pyarrow knows, such as `s3://bucket/runs`, by their URI.

Whatever a file system says of a failure becomes an `OSError` here, or for a URI that a user gave an `OptionError` that names it.
"""

from __future__ import annotations

import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, unquote, urlsplit

from tppo_rl.core.errors import OptionError

if TYPE_CHECKING:
    import pyarrow.fs as pafs

SCHEMES = "s3://, gs://, abfs://, hdfs://, file://"
_OF_URIS = "%/:?#[]@!$&'()*+,;=~"
"""Characters of a URI that stand for themselves."""
_CHUNK = 1 << 23
_PROBE = ".tppo-rl-may-write"
PAUSES = (1.0, 4.0, 16.0)
"""Seconds between the tries of something that fails."""
LOCAL = Path("runs")
"""Folder of this machine for copies of results that are kept elsewhere."""
_R = TypeVar("_R")


def is_uri(text: str) -> bool:
    """Whether a text is a URI and no path."""
    return "://" in text


def without_secrets(text: str) -> str:
    """Returns a text without the passwords of its URIs (`s3://KEY:SECRET@bucket`)."""
    return re.sub(r"(?<=://)[^/@\s:]+:[^/@\s]+(?=@)", "***", text)


def local_path_of(uri: str) -> Path | None:
    """The folder of this machine that a `file://` URI names; None for others."""
    parts = urlsplit(uri)
    return Path(unquote(parts.path)) if parts.scheme == "file" and parts.netloc in ("", "localhost") else None


@dataclass(frozen=True)
class Storage:
    """A folder of a file system that pyarrow knows. It need not be there."""

    uri: str
    """For messages and commands."""
    filesystem: pafs.FileSystem
    path: str
    """Of the folder in the file system."""

    @property
    def name(self) -> str:
        """Last part of the path."""
        return posixpath.basename(self.path.rstrip("/"))

    @property
    def shown(self) -> str:
        """The URI for messages."""
        return without_secrets(self.uri)

    def joined(self, name: str) -> Storage:
        """A folder in this one."""
        before, mark, query = self.uri.partition("?")
        uri = f"{before.rstrip('/')}/{quote(name)}{mark}{query}"
        return Storage(uri, self.filesystem, posixpath.join(self.path, name))

    def local_folder(self, results: Path) -> Path:
        """Where in a folder of this machine a copy of this one is kept: `s3/bucket/path`."""
        return results / re.match(r"\w*", self.uri)[0] / self.path.strip("/")  # type: ignore[index]

    def sizes(self) -> dict[str, int]:
        """Bytes of all files in the folder and below it, by their path from it; empty where there is none.

        Raises:
            OSError: it cannot be listed.
        """
        import pyarrow.fs as pafs

        with _os_errors():
            selector = pafs.FileSelector(self.path, recursive=True, allow_not_found=True)
            found = self.filesystem.get_file_info(selector)
        start = len(self.path.rstrip("/")) + 1
        return {info.path[start:]: info.size for info in found if info.type == pafs.FileType.File}

    def is_there(self, key: str) -> bool:
        """Whether the folder holds a file.

        Args:
            key: Of the user who gave the URI.

        Raises:
            OptionError: it cannot be listed.
        """
        try:
            return bool(self.sizes())
        except OSError as error:
            raise OptionError(f"{key}={self.shown!r}: cannot be read: {first_line(error)}") from None

    def read(self, name: str) -> bytes | None:
        """What is in a file; None where there is none.

        Raises:
            OSError: it cannot be read.
        """
        with _os_errors():
            try:
                with self.filesystem.open_input_stream(self._place(name)) as stream:
                    return bytes(stream.read())
            except FileNotFoundError:
                return None

    def write(self, name: str, data: bytes) -> None:
        """Writes a small file, in the place of one that is there.

        Raises:
            OSError: it cannot be written.
        """
        with self._writing(name) as stream:
            stream.write(data)

    def put(self, source: Path, name: str, size: int | None = None) -> None:
        """Copies a file there, in the place of one that is there.

        Args:
            source: On this machine.
            name: Path from this folder.
            size: Bytes from its start on; None: all. More may be appended meanwhile.

        Raises:
            OSError: it cannot be read or written.
        """
        left = source.stat().st_size if size is None else size
        with source.open("rb") as file, self._writing(name) as stream:
            while left and (chunk := file.read(min(left, _CHUNK))):
                stream.write(chunk)
                left -= len(chunk)

    def get(self, name: str, target: Path) -> None:
        """Copies a file from there.

        Args:
            name: Path from this folder.
            target: On this machine; folders above it are made.

        Raises:
            OSError: it cannot be read or written.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            _os_errors(),
            self.filesystem.open_input_stream(self._place(name)) as stream,
            target.open("wb") as file,
        ):
            while chunk := stream.read(_CHUNK):
                file.write(chunk)

    def remove_file(self, name: str) -> None:
        """Removes a file.

        Raises:
            OSError: it cannot be removed.
        """
        with _os_errors():
            self.filesystem.delete_file(self._place(name))

    def remove_folder(self, name: str) -> None:
        """Removes a folder with all that is in it.

        Raises:
            OSError: it cannot be removed.
        """
        with _os_errors():
            self.filesystem.delete_dir(self._place(name))

    def check_writable(self, key: str) -> None:
        """Writes and removes a file, to see whether one may.

        Args:
            key: Of the user who gave the URI.

        Raises:
            OptionError: one may not, or there is no such bucket or host.
        """
        try:
            self.write(_PROBE, b"")
            self.remove_file(_PROBE)
        except OSError as error:
            raise OptionError(
                f"{key}={self.shown!r}: cannot be written: {first_line(error)}; give a bucket or host that is there, and rights to "
                "write and remove files in it"
            ) from None

    @contextmanager
    def _writing(self, name: str) -> Iterator[pafs.NativeFile]:
        place = self._place(name)
        with _os_errors():
            self.filesystem.create_dir(posixpath.dirname(place), recursive=True)
            with self.filesystem.open_output_stream(place) as stream:
                yield stream

    def _place(self, name: str) -> str:
        return posixpath.join(self.path, name).rstrip("/")


def storage_at(uri: str, key: str) -> Storage:
    """Returns the folder that a URI names. Nothing is written; some file systems connect.

    Args:
        uri: Spaces and other characters that no URI has are allowed.
        key: Of the user who gave it.

    Raises:
        OptionError: it is no URI of a file system that pyarrow knows, or the file system cannot be made.
    """
    import pyarrow as pa
    import pyarrow.fs as pafs

    scheme = uri.partition("://")[0]
    try:
        filesystem, path = pafs.FileSystem.from_uri(quote(uri, safe=_OF_URIS))
    except (pa.ArrowException, OSError, ValueError, ImportError) as error:
        raise OptionError(
            f"{key}={without_secrets(uri)!r}: pyarrow makes no file system of it: {first_line(error)}; known are {SCHEMES}"
        ) from None
    if not path.strip("/"):
        raise OptionError(
            f"{key}={without_secrets(uri)!r}: names no bucket or folder; give one: {scheme}://bucket/folder"
        )
    return Storage(uri, filesystem, path)


def folder_here(results: Path | Storage) -> Path:
    """Where results are on this machine: the folder itself, or that of its copy, such as `runs/s3/bucket/path`."""
    return results.local_folder(LOCAL) if isinstance(results, Storage) else results


def persistently(work: Callable[[], _R], *, pauses: Sequence[float] = PAUSES) -> _R:
    """Does something that may fail, and tries again after each pause.

    Raises:
        OSError: of the last try.
    """
    for pause in pauses:
        try:
            return work()
        except OSError:
            time.sleep(pause)
    return work()


def first_line(error: BaseException) -> str:
    """The first line of what an error says, else its type."""
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0]) if lines else type(error).__name__


@contextmanager
def _os_errors() -> Iterator[None]:
    """Turns errors of pyarrow that are no `OSError` into one."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        raise OSError(first_line(error)) from error
