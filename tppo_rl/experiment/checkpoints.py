"""Checkpoints of a run's folder: saved whole or not at all, and the newest ones kept."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tppo_rl.core.checkpoint_files import (
    LOOP,
    check_every_file,
    checkpoint_facts,
    checkpoint_state,
    is_checkpoint,
    is_whole,
    unknown_files,
    why_not_whole,
)
from tppo_rl.core.errors import OptionError, OptionWarning, RunError
from tppo_rl.core.whole_files import is_full_disk, is_refused
from tppo_rl.plan.memory import Memory

CHECKPOINTS = "checkpoints"
PARTIAL = "partial_"
_REMOVED = "removed_"


def checkpoint_path(folder: Path, iteration: int) -> Path:
    """Where the checkpoint of an iteration is saved."""
    return folder / CHECKPOINTS / f"iteration_{iteration:06d}"


def iteration_of(checkpoint: Path) -> int:
    """The iteration after which a checkpoint was saved; -1 where the name is not that of one."""
    number = checkpoint.name.removeprefix(PARTIAL).removeprefix(_REMOVED).removeprefix("iteration_")
    return int(number) if number.isdecimal() else -1


def find_newest_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run's folder; None if there is none."""
    # Written to its end and not renamed yet: the one that it replaces may be half removed.
    written = [path for path in _named(folder, PARTIAL) if is_whole(path)]
    return max([*(path for path in _named(folder) if is_whole(path)), *written], key=iteration_of, default=None)


def _named(folder: Path, prefix: str = "") -> list[Path]:
    """Whatever has the name of a checkpoint in a run's folder; other names are a user's own."""
    return [path for path in (folder / CHECKPOINTS).glob(f"{prefix}iteration_*") if iteration_of(path) >= 0]


def _newest_and_warn(folder: Path) -> Path | None:
    """Returns the newest complete checkpoint, and warns of newer ones that are damaged."""
    found = find_newest_checkpoint(folder)
    least = -1 if found is None else iteration_of(found)
    for path in sorted(_named(folder)):
        if iteration_of(path) > least and not is_whole(path):
            warnings.warn(f"{path} is left out: {why_not_whole(path)}", OptionWarning, stacklevel=2)
    return found


def newest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint of a run's folder, under its own name.

    Raises:
        OptionError: there is none.
    """
    found = _newest_and_warn(folder)
    if found is None:
        raise OptionError(f"--resume: {folder} holds no checkpoint; leave --resume out to begin anew")
    target = checkpoint_path(folder, iteration_of(found))
    if found != target:
        _put(found, target)
    return target


def checkpoint_in(source: Path) -> Path:
    """Returns the checkpoint at `source`, or the newest one of the run there.

    Raises:
        OptionError: there is none.
    """
    if is_checkpoint(source):
        return source
    found = _newest_and_warn(source)
    if found is None:
        raise OptionError(f"checkpoint={str(source)!r}: is no checkpoint, and no run's folder that holds one")
    return found


def write_partial(target: Path, write: Callable[[str], object]) -> None:
    """Writes a checkpoint that is not put in its place yet.

    Args:
        target: From `checkpoint_path`.
        write: Writes it into a folder.

    Raises:
        RunError: there is no room for it.
    """
    with _leaving_nothing(target) as partial:
        write(str(partial))


def begin_saving(target: Path, begin: Callable[[Path], Callable[[], None]]) -> Callable[[], None]:
    """Begins a checkpoint, and returns what does the rest of `write_partial`, in another thread.

    Args:
        target: From `checkpoint_path`.
        begin: Takes the state for a checkpoint in a folder, and returns what writes it.

    Raises:
        RunError: there is no room for it. What is returned may raise it, too.
    """
    with _leaving_nothing(target) as partial:
        write = begin(partial)

    def rest() -> None:
        with _leaving_nothing(target, fresh=False):
            write()

    return rest


@contextmanager
def _leaving_nothing(target: Path, *, fresh: bool = True) -> Iterator[Path]:
    """Gives the folder that a checkpoint is written to, and removes it where that fails.

    Args:
        target: From `checkpoint_path`.
        fresh: Whether to remove what is there.
    """
    partial = target.with_name(f"{PARTIAL}{target.name}")
    if fresh:
        shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
    except Exception as error:
        shutil.rmtree(partial, ignore_errors=True)
        full = is_full_disk(error)
        if not full and not is_refused(error):
            raise
        newest = find_newest_checkpoint(target.parent.parent)
        rest = (
            "there is no other one yet"
            if newest is None
            else f"the newest one is {newest}; {'make room' if full else 'give the right to write'}, and go on with --resume"
        )
        why = "there is no room left on the disk for this checkpoint" if full else f"may not be written ({error})"
        raise RunError(f"{target}: {why}; {rest}") from error


def put_checkpoint(target: Path, num_to_keep: int | None) -> None:
    """Puts a checkpoint that `write_partial` has written in its place, and removes the oldest and what kills have left beside it.

    Args:
        target: From `checkpoint_path`; an older checkpoint there is replaced.
        num_to_keep: Number of newest checkpoints to keep; None keeps all.
    """
    _put(target.with_name(f"{PARTIAL}{target.name}"), target)
    if num_to_keep is not None:
        # One that is damaged is none, and says why when it is asked for.
        whole = sorted(path for path in _named(target.parent.parent) if is_whole(path))
        for old in whole[:-num_to_keep]:
            _set_aside(old)
    half_written = [path for path in _named(target.parent.parent, PARTIAL) if not is_whole(path)]
    for left in [*half_written, *_named(target.parent.parent, _REMOVED)]:
        shutil.rmtree(left)


def _put(written: Path, target: Path) -> None:
    """Gives a whole checkpoint its name, in the place of another one."""
    # A second Ctrl-C may end the removal of files: what is half removed must not be found, and the new one must be there.
    replaced = _set_aside(target) if target.exists() else None
    written.rename(target)
    if replaced is not None:
        shutil.rmtree(replaced)


def _set_aside(checkpoint: Path) -> Path:
    """Renames a checkpoint, so that it is not found any more."""
    place = checkpoint.with_name(f"{_REMOVED}{checkpoint.name}")
    shutil.rmtree(place, ignore_errors=True)
    return checkpoint.rename(place)


def checkpoint_size(folder: Path, memory: Memory) -> int:
    """Bytes that a checkpoint will take: as many as the newest one, else weights and moments of the models that are trained."""
    newest = find_newest_checkpoint(folder)
    # One that is being written may take its place meanwhile.
    with suppress(OSError):
        if newest is not None:
            return sum(path.stat().st_size for path in newest.iterdir())
    # Of weights, gradients and two moments a checkpoint leaves the gradients out.
    return sum(part.size for part in memory.parts if part.name in ("policy", "critic")) * 3 // 4


def describe_checkpoint(folder: Path) -> Iterator[str]:
    """Gives lines that say what a checkpoint holds, when all of its files are found to be as they were written.

    Raises:
        OptionError: it is damaged.
    """
    check_every_file(folder)
    # All files are checked, and weights are not read once more.
    ledger, facts = checkpoint_state(folder, lazily=True)[LOOP]["ledger"], checkpoint_facts(folder)
    yield f"{folder}: whole; {facts['algorithm']} after {facts['iteration']} updates, policy_model {facts['options']['policy_model']}"
    for name, file in sorted(facts["files"].items()):
        yield f"  {name:32}{file['size']:>18,} bytes"
    yield (
        f"  tokens: {ledger['sampled']:,} sampled, {ledger['trained']:,} trained, {ledger['queued']:,} wait for an update; "
        f"{ledger['begun'].num_rows:,} responses are open"
    )
    if others := unknown_files(folder):
        yield f"  not of the checkpoint, and never read: {', '.join(others)}"
    if facts["not_saved"]:
        yield f"  not in it, give them again: {', '.join(facts['not_saved'])}"


def size_in_words(size: int) -> str:
    """Bytes as MB or GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(1, round(size / 1e6))} MB"
