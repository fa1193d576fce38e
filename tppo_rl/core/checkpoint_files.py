"""Checkpoints on disk: the state of an algorithm and what it was made of, as `core.state_files` writes them.

| file | holds |
|---|---|
| manifest.json | algorithm, options, settings of RLlib, config of the models, iteration; all files |
| policy.safetensors, critic.safetensors | weights, or adapters |
| optimizers.safetensors | their moments |
| queue.arrow, grouped.arrow | fragments that wait for an update, responses that wait for others of their group |
| begun.arrow, held.arrow, hindsight.arrow | open responses, finished ones that wait for the critic or for their second training |
| state.json | everything else |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.state_files import (
    MANIFEST,
    DamagedState,
    check_sizes,
    read_manifest,
    read_state,
    write_state,
)

MODULE = ("learner_group", "learner", "rl_module", "default_policy")
"""Path of the models in an algorithm's state."""
LOOP = "tppo"
"""Key of the training loop in an algorithm's state."""
_MODULE_PART = "/".join(MODULE)
_FILES = {
    f"{_MODULE_PART}/policy": "policy",
    f"{_MODULE_PART}/critic": "critic",
    "learner_group/learner/optimizer": "optimizers",
}
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
        OptionError: one is not, or the folder is no checkpoint of this format.
    """
    with _naming(folder):
        return check_sizes(folder)


def write_checkpoint(folder: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Writes an algorithm's state.

    Args:
        folder: Is made.
        state: Of the algorithm.
        facts: What the manifest says; `options` and `model_config` are what the functions here read.
    """
    write_state(folder, dict(state), facts=facts, files=_FILES)


def checkpoint_facts(folder: Path) -> dict[str, Any]:
    """Returns what the manifest of a checkpoint says.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return read_manifest(folder)


def checkpoint_state(folder: Path) -> dict[str, Any]:
    """Returns the whole state of a checkpoint, all files of which are as they were written.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return dict(read_state(folder))


def module_state(folder: Path) -> dict[str, Any]:
    """Returns the weights of a checkpoint, `{"policy": {...}, "critic": {...}}`.

    Raises:
        OptionError: it is damaged, or no checkpoint of this format.
    """
    with _naming(folder):
        return dict(read_state(folder, part=_MODULE_PART))


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
        raise OptionError(f"checkpoint={str(folder)!r}: {error}; name another one, or move this one away") from None
