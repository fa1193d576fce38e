"""Checkpoints on disk: the state of an algorithm and what it was made of, as `core.state_files` writes them.

| file | holds |
|---|---|
| manifest.json | algorithm, options, settings of RLlib, config of the models, iteration; all files |
| policy.safetensors, critic.safetensors | weights, or adapters |
| optimizers.safetensors | their moments |
| policy_0_of_2.safetensors, … | rows of the same: sharded learners write their own (`core.sliced_arrays`) |
| queue.arrow, grouped.arrow | fragments that wait for an update, responses that wait for others of their group |
| begun.arrow, held.arrow, hindsight.arrow | open responses, finished ones that wait for the critic or for their second training |
| state.json | everything else |
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.sliced_arrays import DamagedState, slice_file
from tppo_rl.core.state_files import (
    MANIFEST,
    TakenState,
    check_contents,
    check_files,
    check_sizes,
    files_of_part,
    read_manifest,
    read_state,
    take_state,
)

MODULE = ("learner_group", "learner", "rl_module", "default_policy")
"""Path of the models in an algorithm's state."""
LOOP = "tppo"
"""Key of the training loop in an algorithm's state."""
LEARNERS = "learner_group"
"""Key of the learners in an algorithm's state."""
LEARNER_PART = f"{LEARNERS}/learner"
"""Path of the state that all learners share."""
_MODULE_PART = "/".join(MODULE)
_FILES = {
    f"{_MODULE_PART}/policy": "policy",
    f"{_MODULE_PART}/critic": "critic",
    f"{LEARNER_PART}/optimizer": "optimizers",
}
NO_WAY_OUT = "there is no whole one beside it"
"""End of the message on a damaged checkpoint, where no other one is whole."""
_PICKLED = "learner_group"
"""Folder that checkpoints of earlier versions have."""


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder is a checkpoint, also a damaged one or one of an earlier version."""
    return (folder / MANIFEST).is_file() or (folder / _PICKLED).is_dir()


def is_whole(folder: Path) -> bool:
    """Whether a checkpoint was written to its end."""
    return why_not_whole(folder) is None


def why_not_whole(folder: Path) -> str | None:
    """Says why a folder is no checkpoint that was written to its end; None if it is."""
    try:
        read_manifest(folder)
    except DamagedState as error:
        return str(error)
    return None


def unknown_files(folder: Path) -> list[str]:
    """Names of what lies in a checkpoint's folder and is not of it."""
    known = {MANIFEST, *read_manifest(folder)["files"]}
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


def check_whole(folder: Path) -> dict[str, Any]:
    """Checks that all files of a checkpoint are there in their sizes, and returns what its manifest says.

    What is in the files is checked when they are read.

    Raises:
        OptionError: some are not, or the folder is no checkpoint of this format.
    """
    with _naming(folder):
        return check_sizes(folder)


def check_every_file(folder: Path) -> None:
    """Checks that all files of a checkpoint are as they were written.

    Raises:
        OptionError: names all that are not, and a whole checkpoint beside this one.
    """
    with _naming(folder):
        check_contents(folder)


def begin_checkpoint(folder: Path) -> None:
    """Makes a folder that learners will write to. A checkpoint that is there is no more whole, and loses its weights and moments."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    for name in _FILES.values():
        (folder / f"{name}.safetensors").unlink(missing_ok=True)
        for path in folder.glob(slice_file(name, "[0-9]*", "[0-9]*")):
            path.unlink()


def write_checkpoint(
    folder: Path,
    state: Mapping[str, Any],
    facts: Mapping[str, Any],
    written: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Writes an algorithm's state.

    Args:
        folder: Is made.
        state: Of the algorithm.
        facts: What the manifest says; `options` and `model_config` are what the functions here read.
        written: What learners have written there, see `TakenState.write`.
    """
    take_checkpoint(state).write(folder, facts=facts, written=written)


def take_checkpoint(state: Mapping[str, Any]) -> TakenState:
    """Takes an algorithm's state as it is now, to be written while it changes.

    Args:
        state: Of the algorithm. Weights and moments in it are copies, or never change.
    """
    return take_state(dict(state), _FILES)


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """Returns what the manifest of a checkpoint says.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return read_manifest(folder)


def checkpoint_state(folder: Path, *, without: str | None = None, lazily: bool = False) -> dict[str, Any]:
    """Returns the state of a checkpoint, the files of which are as they were written.

    Args:
        folder: Of the checkpoint.
        without: A key of the state, which is left out, and whose files are not read.
        lazily: Whether its numpy arrays are `StoredArray`s, which are read when they are asked for.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return dict(read_state(folder, without=without, lazily=lazily))


def learner_files(folder: Path) -> dict[str, dict[str, Any]]:
    """Returns what the manifest says of each file that learners read.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return files_of_part(folder, LEARNER_PART)


def check_learner_files(folder: Path, files: Mapping[str, Mapping[str, Any]], contents: Collection[str]) -> None:
    """Checks the sizes of files, and the checksums of some.

    Raises:
        OptionError: names those that are not as they were written.
    """
    with _naming(folder):
        check_files(folder, files, contents=contents)


def learner_state(folder: Path, *, lazily: bool = False) -> dict[str, Any]:
    """Returns the state that all learners share.

    Args:
        folder: Of the checkpoint.
        lazily: Whether to read and check no arrays, but to return `StoredArray`s in their place.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return dict(read_state(folder, part=LEARNER_PART, lazily=lazily, check=not lazily))


def module_state(folder: Path) -> dict[str, Any]:
    """Returns the weights of a checkpoint, `{"policy": {...}, "critic": {...}}`, as `StoredArray`s.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return dict(read_state(folder, part=_MODULE_PART, lazily=True))


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Turns errors of reading into one that names the checkpoint."""
    if not (folder / MANIFEST).exists() and (folder / _PICKLED).is_dir():
        raise OptionError(
            f"checkpoint={str(folder)!r}: holds pickles, as an earlier version wrote them. To read them is to run the code in them, so "
            "they are not read; export the policy with the version that has written it"
        )
    try:
        yield
    except DamagedState as error:
        raise OptionError(f"checkpoint={str(folder)!r}: {error}; {_way_out(folder)}") from None


def _way_out(folder: Path) -> str:
    """What to do about a damaged checkpoint. The newest one beside it that is whole is read to its end."""
    beside = [path for path in folder.parent.glob("*") if path != folder and is_whole(path)]
    for path in sorted(beside, key=lambda path: read_manifest(path).get("iteration", -1), reverse=True):
        try:
            check_contents(path)
        except DamagedState:
            continue
        return f"{path} is whole: name that, or move this one away to go on from there"
    return NO_WAY_OUT
