"""Checkpoints of a run's folder: saved whole or not at all, and the newest ones kept."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.memory import Memory

CHECKPOINTS = "checkpoints"


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is saved."""
    return folder / CHECKPOINTS / f"iteration_{iteration:06d}"


def iteration_of(checkpoint: Path) -> int:
    """The iteration after which a checkpoint was saved."""
    return int(checkpoint.name.removeprefix("iteration_"))


def find_newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder; None if there is none."""
    return max((folder / CHECKPOINTS).glob("iteration_*"), default=None)


def newest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint of a run's folder.

    Raises:
        OptionError: there is none.
    """
    found = find_newest_checkpoint(folder)
    if found is None:
        raise OptionError(f"--resume: {folder} holds no checkpoint; leave --resume out to begin anew")
    return found


def checkpoint_in(source: Path) -> Path:
    """Returns the checkpoint at `source`, or the newest one of the run there.

    Raises:
        OptionError: there is none.
    """
    if (source / "learner_group").is_dir():
        return source
    found = find_newest_checkpoint(source)
    if found is None:
        raise OptionError(f"checkpoint={str(source)!r}: is no checkpoint, and no run's folder that holds one")
    return found


def save_checkpoint(algorithm: Any, target: Path, num_to_keep: int | None) -> Path:
    """Saves a checkpoint whole or not at all, and removes the oldest beside it.

    Args:
        algorithm: What is saved.
        target: From `checkpoint_path`; an older checkpoint there is replaced.
        num_to_keep: Number of newest checkpoints to keep; None keeps all.
    """
    partial = target.with_name(f"partial_{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    algorithm.save_to_path(str(partial))
    # A second Ctrl-C may end the removal of files: what is half removed must not be found, and the new one must be there.
    replaced = [_set_aside(target)] if target.exists() else []
    partial.rename(target)
    if num_to_keep is not None:
        replaced += [_set_aside(old) for old in sorted(target.parent.glob("iteration_*"))[:-num_to_keep]]
    for old in replaced:
        shutil.rmtree(old)
    return target


def _set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint, so that it is not found any more."""
    place = checkpoint.with_name(f"removed_{checkpoint.name}")
    shutil.rmtree(place, ignore_errors=True)
    return checkpoint.rename(place)


def checkpoint_size(folder: Path, memory: Memory) -> int:
    """Bytes that a checkpoint will take: as many as the newest one, else weights and moments of the models that are trained."""
    newest = find_newest_checkpoint(folder)
    if newest is not None:
        return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    # Of weights, gradients and two moments a checkpoint leaves the gradients out.
    return sum(part.size for part in memory.parts if part.name in ("policy", "critic")) * 3 // 4


def size_in_words(size: int) -> str:
    """Bytes as MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
