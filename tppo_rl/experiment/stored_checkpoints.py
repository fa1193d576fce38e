"""Checkpoints at a URI: chosen, copied there and removed, so that a kill at any moment leaves a whole one once there was one.

    checkpoints/iteration_000004/policy.safetensors, …    first
    checkpoints/iteration_000004/manifest.json            last: with it the checkpoint is whole, and is chosen

File systems that keep objects rename no folders. So a checkpoint is written under its own name, one that is removed loses its
manifest first, and one that takes the place of another one is written as `partial_…` too, which counts as long as the other does not.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tppo_rl.core.sliced_arrays import DamagedState
from tppo_rl.core.state_files import MANIFEST, damaged_sizes, parse_manifest
from tppo_rl.core.storage import Storage, persistently
from tppo_rl.experiment.checkpoints import CHECKPOINTS, PARTIAL, iteration_of


@dataclass(frozen=True)
class StoredCheckpoint:
    """A checkpoint at a URI that was written to its end."""

    place: str
    """Path of its folder from that of the run."""
    manifest: Mapping[str, Any]

    @property
    def iteration(self) -> int:
        """After which it was saved."""
        return iteration_of(Path(self.place))

    def damages(self, sizes: Mapping[str, int]) -> str:
        """Says which of its files are missing, cut or longer; empty where none is.

        Args:
            sizes: Of all files of the run, from `Storage.sizes`.
        """
        start = f"{self.place}/"
        here = {name.removeprefix(start): size for name, size in sizes.items() if name.startswith(start)}
        return "; ".join(damaged_sizes(self.manifest["files"], here).values())


def stored_checkpoints(storage: Storage, sizes: Mapping[str, int]) -> Iterator[StoredCheckpoint]:
    """Gives the checkpoints of a run that were written to their end, the newest first.

    Args:
        storage: Folder of the run.
        sizes: Of its files, from `Storage.sizes`.

    Raises:
        OSError: a manifest cannot be read.
    """
    places = [posixpath.dirname(name) for name in sizes if name.startswith(f"{CHECKPOINTS}/")]
    with_manifest = {place for place in places if f"{place}/{MANIFEST}" in sizes and iteration_of(Path(place)) >= 0}
    # Of two for one iteration, the one under its own name.
    for place in sorted(with_manifest, key=lambda place: (-iteration_of(Path(place)), _is_partial(place), place)):
        manifest = _manifest(storage, place)
        if manifest is not None:
            yield StoredCheckpoint(place, manifest)


def newest_stored(storage: Storage, sizes: Mapping[str, int]) -> StoredCheckpoint | None:
    """The newest of `stored_checkpoints`; None where there is none."""
    return next(stored_checkpoints(storage, sizes), None)


def copy_checkpoint(checkpoint: Path, storage: Storage, num_to_keep: int | None) -> None:
    """Copies a checkpoint to a run's folder at a URI, unless it is there, and removes the oldest beside it.

    Args:
        checkpoint: Whole, in a folder of this machine.
        storage: Folder of the run.
        num_to_keep: Number of newest checkpoints to keep there; None keeps all.

    Raises:
        OSError: the file system refuses something, after a few tries.
    """
    place = f"{CHECKPOINTS}/{checkpoint.name}"
    if persistently(lambda: storage.read(f"{place}/{MANIFEST}")) != (checkpoint / MANIFEST).read_bytes():
        if persistently(lambda: _manifest(storage, place)) is not None:
            _copy(checkpoint, storage, f"{CHECKPOINTS}/{PARTIAL}{checkpoint.name}")
        _copy(checkpoint, storage, place)
    _remove_old(storage, iteration_of(checkpoint), num_to_keep)


def _copy(checkpoint: Path, storage: Storage, place: str) -> None:
    _remove(storage, place, storage.sizes())
    for file in parse_manifest((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]:
        persistently(lambda: storage.put(checkpoint / file, f"{place}/{file}"))  # noqa: B023
    persistently(lambda: storage.put(checkpoint / MANIFEST, f"{place}/{MANIFEST}"))


def _remove_old(storage: Storage, newest: int, num_to_keep: int | None) -> None:
    """Removes what is older than the newest checkpoint and is no checkpoint, and checkpoints that are too many."""
    sizes = persistently(storage.sizes)
    places = {posixpath.dirname(name) for name in sizes if name.startswith(f"{CHECKPOINTS}/")}
    older = {place for place in places if 0 <= iteration_of(Path(place)) <= newest}
    left = {place for place in older if _is_partial(place) or f"{place}/{MANIFEST}" not in sizes}
    if num_to_keep is not None:
        whole = [found.place for found in stored_checkpoints(storage, sizes) if found.place in older - left]
        left = older - {*whole[:num_to_keep]}
    for place in sorted(left):
        _remove(storage, place, sizes)


def _remove(storage: Storage, place: str, sizes: Mapping[str, int]) -> None:
    if f"{place}/{MANIFEST}" in sizes:
        persistently(lambda: storage.remove_file(f"{place}/{MANIFEST}"))
    if any(name.startswith(f"{place}/") for name in sizes):
        persistently(lambda: storage.remove_folder(place))


def _manifest(storage: Storage, place: str) -> dict[str, Any] | None:
    data = storage.read(f"{place}/{MANIFEST}")
    try:
        return None if data is None else parse_manifest(data.decode("utf-8"))
    except (DamagedState, UnicodeDecodeError):
        return None


def _is_partial(place: str) -> bool:
    return posixpath.basename(place).startswith(PARTIAL)
