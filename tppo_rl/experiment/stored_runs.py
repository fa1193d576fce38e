"""Runs whose results are kept at a URI: their files copied there, and fetched to go on or to be looked at."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple

from tppo_rl.core.checkpoint_files import NO_WAY_OUT
from tppo_rl.core.errors import OptionError
from tppo_rl.core.sliced_arrays import DamagedState
from tppo_rl.core.state_files import MANIFEST, check_contents
from tppo_rl.core.storage import Storage, first_line, is_uri, local_path_of, persistently, storage_at, without_secrets
from tppo_rl.experiment.checkpoints import (
    CHECKPOINTS,
    PARTIAL,
    checkpoint_path,
    find_newest_checkpoint,
    iteration_of,
)
from tppo_rl.experiment.result_log import RESULTS
from tppo_rl.experiment.stored_checkpoints import StoredCheckpoint, newest_stored, stored_checkpoints

Files = dict[str, tuple[int, int]]
"""Size in bytes and time of the last change in nanoseconds, by path from the run's folder."""
_LINES = (RESULTS, "progress.csv")


def files_of_run(folder: Path) -> Files:
    """What a run's folder holds beside its checkpoints and files that are being written."""
    files: Files = {}
    for place, folders, names in os.walk(folder):
        if Path(place) == folder and CHECKPOINTS in folders:
            folders.remove(CHECKPOINTS)
        for name in names:
            path = Path(place, name)
            if name.startswith("."):
                continue
            # Others may remove a file of theirs meanwhile.
            with suppress(FileNotFoundError):
                state = path.stat()
                files[path.relative_to(folder).as_posix()] = state.st_size, state.st_mtime_ns
    return files


def copy_files(folder: Path, files: Files, storage: Storage, sent: Files) -> None:
    """Copies files as far as they went when they were looked at; rows may be appended to them meanwhile.

    Args:
        folder: Of the run.
        files: From `files_of_run`.
        storage: Where to.
        sent: What is there already; is brought up to date.

    Raises:
        OSError: the file system refuses one, after a few tries.
    """
    for name, state in files.items():
        if sent.get(name) != state and (folder / name).is_file():
            persistently(lambda: storage.put(folder / name, name, state[0]))  # noqa: B023
            sent[name] = state


def check_free(storage: Storage, key: str) -> None:
    """Checks that no run lies where a new one is to be kept: there, nothing can be renamed.

    Raises:
        OptionError: one does, or the place cannot be read.
    """
    with _naming(storage, key):
        sizes = storage.sizes()
    if RESULTS in sizes or any(name.startswith(f"{CHECKPOINTS}/") for name in sizes):
        raise OptionError(
            f"{key}: {storage.shown} holds an earlier run; go on with --resume, give another folder, or remove it there"
        )


def stored_to_resume(storage: Storage, sizes: Mapping[str, int], key: str) -> StoredCheckpoint:
    """Returns the newest checkpoint of a run at a URI, all of whose files are there in their sizes.

    Raises:
        OptionError: there is none, or files are missing or cut; it names them, and a whole checkpoint if there is one.
    """
    newest = newest_stored(storage, sizes)
    if newest is None:
        raise OptionError(f"{key}: {storage.shown} holds no checkpoint; leave --resume out to begin anew")
    if bad := newest.damages(sizes):
        raise _damaged(storage, sizes, newest, bad, key)
    return newest


def _damaged(storage: Storage, sizes: Mapping[str, int], newest: StoredCheckpoint, bad: str, key: str) -> OptionError:
    return OptionError(f"{key}: {storage.shown}: {newest.place}: {bad}; {_way_out(storage, sizes, newest)}")


def _way_out(storage: Storage, sizes: Mapping[str, int], newest: StoredCheckpoint) -> str:
    others = (other for other in stored_checkpoints(storage, sizes) if other.place != newest.place)
    whole = next((other.place for other in others if not other.damages(sizes)), None)
    if whole is None:
        return NO_WAY_OUT
    return f"{whole} is there in its sizes: remove the other one to go on from it"


class Fetched(NamedTuple):
    """What was done to go on from what is kept at a URI."""

    words: str
    newest: int
    """Iteration of the newest checkpoint there."""


def fetch_to_resume(storage: Storage, folder: Path, key: str) -> Fetched:
    """Makes the folder of this machine one that goes on from what is kept at a URI.

    A folder of this machine that went further, such as one whose last checkpoint could not be copied, stays as it is. Any other
    one is renamed.

    Raises:
        OptionError: there is no checkpoint, or the place cannot be read.
    """
    with _naming(storage, key):
        sizes = persistently(storage.sizes)
        here = find_newest_checkpoint(folder)
        if here is not None and newest_stored(storage, sizes) is None:
            raise OptionError(
                f"{key}: {storage.shown} holds no checkpoint, and {folder} on this machine has that of iteration {iteration_of(here)}; go on "
                f"from there with --results {str(folder.parent)!r}, or leave --resume out to begin anew"
            )
        newest = stored_to_resume(storage, sizes, key)
        if _goes_on(folder, storage, newest):
            return Fetched(f"{folder} holds all of {storage.shown}", newest.iteration)
        before = set_aside(folder)
        _fetch_files(storage, folder, sizes)
        try:
            check_contents(_fetch_checkpoint(storage, folder, newest, sizes))
        except DamagedState as error:
            raise _damaged(storage, sizes, newest, str(error), key) from None
    aside = "" if before is None else f"; what was there is in {before}"
    return Fetched(f"fetched {storage.shown} into {folder}{aside}", newest.iteration)


def set_aside(folder: Path) -> Path | None:
    """Renames the folder of an earlier run, so that nothing is overwritten; returns its new name, None where nothing was there."""
    if not folder.exists() or not any(folder.iterdir()):
        return None
    stamp = datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    target = folder.with_name(f"{folder.name}-{stamp}")
    while target.exists():
        target = target.with_name(f"{target.name}x")
    return folder.rename(target)


def fetch_records(storage: Storage, folder: Path, key: str) -> None:
    """Fetches what lies beside the checkpoints of a run into a folder of this machine; what was there is renamed.

    Raises:
        OptionError: it cannot be read.
    """
    with _naming(storage, key):
        sizes = persistently(storage.sizes)
        set_aside(folder)
        _fetch_files(storage, folder, sizes)


@contextmanager
def fetched(source: str | Path, key: str, *, checkpoint: Literal["whole", "named", "none"] = "whole") -> Iterator[str]:
    """Gives a folder of this machine with what a command reads of a source; one that is no URI is given as it is.

    Args:
        source: A folder or another name, or the URI of a run, a checkpoint or several runs.
        key: Of the source, for messages.
        checkpoint: Whether the newest checkpoint is fetched, its manifest alone, or none. With "whole" nothing else is fetched but
            the files that lie in the folder itself.

    Raises:
        OptionError: there is nothing, or it cannot be read.
    """
    if isinstance(source, Path) or not is_uri(source):
        yield str(source)
        return
    if (local := local_path_of(source)) is not None:
        yield str(local)
        return
    storage = storage_at(source, key)
    with tempfile.TemporaryDirectory(prefix="tppo-rl-") as place:
        folder, newest = Path(place, storage.name), None
        with _naming(storage, key):
            sizes = persistently(storage.sizes)
            if not sizes:
                raise OptionError(f"{key}={storage.shown!r}: there is nothing; give the URI of a run or checkpoint")
            if MANIFEST in sizes:
                _fetch(storage, folder, sizes)
            else:
                _fetch_files(storage, folder, sizes, deep=checkpoint != "whole")
                newest = None if checkpoint == "none" else newest_stored(storage, sizes)
                if newest is not None:
                    _fetch_checkpoint(storage, folder, newest, sizes if checkpoint == "whole" else {})
        try:
            yield str(folder)
        except OptionError as error:
            # In the words of who gave the URI, and knowing of checkpoints that were not fetched.
            text = called(str(error), folder, source)
            if newest is not None:
                text = text.replace(NO_WAY_OUT, _way_out(storage, sizes, newest))
            raise OptionError(text) from None


def called(text: str, folder: Path | str, source: Path | str) -> str:
    """A text in which a folder that was fetched has the name of its source; a folder that was not keeps its own."""
    if isinstance(source, Path) or str(folder) == source:
        return text
    uri, mark, query = without_secrets(source).partition("?")
    # What is below the folder stands before the query.
    below = re.compile(re.escape(str(folder)) + r"(?P<below>(?:/[\w.-]+)*)")
    return below.sub(lambda found: f"{uri.rstrip('/')}{found['below']}{mark}{query}", text)


def _goes_on(folder: Path, storage: Storage, newest: StoredCheckpoint) -> bool:
    """Whether a folder of this machine is of the same run and as far: its results begin with those at the URI."""
    here = find_newest_checkpoint(folder)
    if here is None or iteration_of(here) < newest.iteration:
        return False
    if iteration_of(here) == newest.iteration:
        return storage.read(f"{newest.place}/{MANIFEST}") == (here / MANIFEST).read_bytes()
    results, there = folder / RESULTS, storage.read(RESULTS)
    return bool(there) and results.is_file() and results.read_bytes().startswith(there or b"")


def _fetch_files(storage: Storage, folder: Path, sizes: Mapping[str, int], *, deep: bool = True) -> None:
    """Fetches what is beside checkpoints, those of Tune's trials included, and if not `deep` no folders."""
    names = [
        name
        for name in sizes
        if (deep or "/" not in name)
        and not any(part == CHECKPOINTS or part.startswith("checkpoint_") for part in name.split("/")[:-1])
    ]
    _fetch(storage, folder, names)
    for name in names:
        if name.endswith(".jsonl") or name.rpartition("/")[2] in _LINES:
            _drop_half_a_line(folder / name)


def _fetch_checkpoint(storage: Storage, folder: Path, stored: StoredCheckpoint, sizes: Mapping[str, int]) -> Path:
    """Fetches those of a checkpoint's files that `sizes` knows, and its manifest; returns its folder here."""
    target = checkpoint_path(folder, stored.iteration)
    partial = target.with_name(f"{PARTIAL}{target.name}")
    for name in (*stored.manifest["files"], MANIFEST):
        if name == MANIFEST or f"{stored.place}/{name}" in sizes:
            persistently(lambda: storage.get(f"{stored.place}/{name}", partial / name))  # noqa: B023
    return partial.rename(target)


def _fetch(storage: Storage, folder: Path, names: Mapping[str, int] | list[str]) -> None:
    for name in names:
        persistently(lambda: storage.get(name, folder / name))  # noqa: B023


def _drop_half_a_line(path: Path) -> None:
    """A kill in the midst of a copy may leave half of the last line, where files are not replaced whole."""
    data = path.read_bytes()
    if not data.endswith(b"\n"):
        path.write_bytes(data[: data.rfind(b"\n") + 1])


@contextmanager
def _naming(storage: Storage, key: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OptionError(f"{key}={storage.shown!r}: cannot be read: {first_line(error)}") from None
