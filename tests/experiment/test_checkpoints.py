"""Checkpoints of a folder: found, kept, replaced, and their size."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from tppo_rl.core.checkpoint_files import begin_checkpoint, checkpoint_state, unknown_files, write_checkpoint
from tppo_rl.core.errors import OptionWarning, RunError
from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.core.sliced_arrays import Sliced, slice_file, write_slices
from tppo_rl.experiment import checkpoints
from tppo_rl.experiment.checkpoints import (
    checkpoint_path,
    checkpoint_size,
    find_newest_checkpoint,
    iteration_of,
    newest_checkpoint,
    size_in_words,
)
from tppo_rl.experiment.saver import Saver
from tppo_rl.plan.memory import Memory, Part


def writer(text: str) -> SimpleNamespace:
    """Something whose checkpoint is one file."""

    def save(place: str) -> None:
        Path(place).mkdir(parents=True)
        (Path(place) / "state").write_text(text, encoding="utf-8")
        write_checkpoint(Path(place), {"text": text}, {})

    return SimpleNamespace(save_to_path=save)


def save_checkpoint(algorithm: Any, target: Path, num_to_keep: int | None, *, in_background: bool = False) -> None:
    with Saver(num_to_keep, in_background=in_background, say=print) as saving:
        saving.save(algorithm, target)


def test_the_newest_are_kept_and_one_of_the_same_iteration_is_replaced(tmp_path: Path) -> None:
    assert find_newest_checkpoint(tmp_path) is None
    for iteration in (8, 9, 10):
        save_checkpoint(writer("a"), checkpoint_path(tmp_path, iteration), 2)
    save_checkpoint(writer("b"), checkpoint_path(tmp_path, 10), 2)
    (tmp_path / "checkpoints" / "partial_iteration_000011").mkdir()
    newest = find_newest_checkpoint(tmp_path)
    assert newest is not None
    assert (iteration_of(newest), (newest / "state").read_text(encoding="utf-8")) == (10, "b")
    kept = sorted(path.name for path in newest.parent.glob("iteration_*"))
    assert kept == ["iteration_000009", "iteration_000010"]


@pytest.mark.parametrize("num_to_keep", [2, None])
def test_what_kills_have_left_is_removed_by_the_next_save(tmp_path: Path, num_to_keep: int | None) -> None:
    save_checkpoint(writer("a"), checkpoint_path(tmp_path, 1), num_to_keep)
    folder = tmp_path / "checkpoints"
    for name in ("removed_iteration_000001", "partial_iteration_000002", "partial_notes", "removed_mine"):
        (folder / name).mkdir()
        (folder / name / "state").touch()
    save_checkpoint(writer("b"), checkpoint_path(tmp_path, 3), num_to_keep)
    kept = sorted(path.name for path in folder.iterdir())
    assert kept == ["iteration_000001", "iteration_000003", "partial_notes", "removed_mine"]


@pytest.mark.parametrize("iteration", [1, 2])
def test_half_a_removed_checkpoint_is_never_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, iteration: int
) -> None:
    """The one that is replaced, or the oldest one: a second Ctrl-C ends the removal of its files."""
    save_checkpoint(writer("a"), checkpoint_path(tmp_path, 1), 1)
    remove = checkpoints.shutil.rmtree

    def interrupted(path: Path, *, ignore_errors: bool = False) -> None:
        if (path / "state").is_file():
            (path / "state").unlink()
            raise KeyboardInterrupt
        remove(path, ignore_errors=ignore_errors)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(writer("b"), checkpoint_path(tmp_path, iteration), 1)
    (found,) = (tmp_path / "checkpoints").glob("iteration_*")
    assert (iteration_of(found), (found / "state").read_text(encoding="utf-8")) == (iteration, "b")


def test_the_size_is_that_of_the_newest_or_of_weights_and_moments(tmp_path: Path) -> None:
    parts = [Part("learner", "policy", 4000, ""), Part("learner", "critic", 400, ""), Part("learner", "logits", 7, "")]
    memory = Memory(tuple(parts), {"learner": 1})
    assert checkpoint_size(tmp_path, memory) == 3300
    save_checkpoint(writer("12345"), checkpoint_path(tmp_path, 1), None)
    size = sum(path.stat().st_size for path in checkpoint_path(tmp_path, 1).iterdir())
    assert checkpoint_size(tmp_path, memory) == size > 5
    assert (size_in_words(2_340_000_000), size_in_words(14_600_000), size_in_words(5)) == ("2.3 GB", "15 MB", "1 MB")


FILE_OPERATIONS = ("open", "mkdir", "rename", "unlink", "rmdir")


class Killed(BaseException):
    """What stands for the end of the process; nothing may catch it."""


def killed_at(count: int, monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> bool:
    """Does the work and ends it before its file operation `count`; says whether there were as many."""
    operations = 0

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            nonlocal operations
            operations += 1
            if operations > count:
                raise Killed
            return function(*arguments, **more)

        return call

    with monkeypatch.context() as patched:
        for name in FILE_OPERATIONS:
            patched.setattr(os, name, counted(getattr(os, name)))
        patched.setattr(builtins, "open", counted(builtins.open))
        patched.setattr(io, "open", counted(io.open))
        patched.setattr(pa, "OSFile", counted(pa.OSFile))
        try:
            work()
        except Killed:
            return True
    return False


def state_of(number: int) -> dict[str, Any]:
    return {"number": number, "weights": np.full(50, number, np.float32), "queue": pa.table({"x": [number] * 3})}


def write_whole(folder: Path, number: int) -> None:
    write_checkpoint(folder, state_of(number), {})


def write_by_slices(folder: Path, number: int) -> None:
    """As two sharded learners and their driver do, the learners one after the other."""
    begin_checkpoint(folder)
    weights, written = torch.full((50,), float(number)), {}
    for part, rows in enumerate((weights[:25], weights[25:])):
        name = slice_file("policy", part, 2)
        written[name] = write_slices(folder / name, {"w": rows}, {"w": 25 * part})
    write_checkpoint(folder, state_of(number) | {"weights": Sliced("policy", 2, "w", (50,))}, {}, written)


@pytest.mark.parametrize("num_to_keep", [1, 2])
@pytest.mark.parametrize("write", [write_whole, write_by_slices])
@pytest.mark.parametrize("again", [False, True], ids=["new iteration", "same iteration"])
@pytest.mark.parametrize("in_background", [False, True], ids=["at once", "in background"])
def test_a_kill_at_any_file_operation_leaves_a_whole_checkpoint(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    num_to_keep: int,
    write: Callable[[Path, int], None],
    again: bool,
    in_background: bool,
) -> None:
    """Whatever operation is the last one: the checkpoint that is chosen is whole, and is the old one or the new one."""

    def saver(number: int) -> SimpleNamespace:
        return SimpleNamespace(
            save_to_path=lambda place: write(Path(place), number),
            begin_checkpoint=lambda place: partial(write, place, number),
        )

    save = partial(save_checkpoint, in_background=in_background)
    seen, count = set(), 0
    while True:
        folder = tmp_path / str(count)
        for iteration in (1, 2):
            save(saver(iteration), checkpoint_path(folder, iteration), num_to_keep)
        target = checkpoint_path(folder, 2 if again else 3)
        killed = killed_at(count, monkeypatch, lambda: save(saver(3), target, num_to_keep))  # noqa: B023
        for _ in range(2):
            # The run goes on, and saves once more.
            chosen = newest_checkpoint(folder)
            number = checkpoint_state(chosen)["number"]
            assert number in (2, 3)
            np.testing.assert_array_equal(checkpoint_state(chosen)["weights"], state_of(number)["weights"])
        seen.add(number)
        save(saver(4), checkpoint_path(folder, 4), num_to_keep)
        assert checkpoint_state(newest_checkpoint(folder))["number"] == 4
        if not killed:
            break
        count += 1
    assert count > 10, "there are as many file operations"
    assert seen == {2, 3}


def test_slices_of_an_earlier_checkpoint_are_not_of_the_new_one(tmp_path: Path) -> None:
    """A folder is written once more, by fewer learners. What others have put there stays."""
    old = [slice_file("policy", 2, 3), slice_file("optimizers", 10, 11), "critic.safetensors", "manifest.json"]
    for name in (*old, "policy_of_mine.safetensors"):
        (tmp_path / name).write_text("old", encoding="utf-8")
    begin_checkpoint(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy_of_mine.safetensors"]
    write_by_slices(tmp_path, 1)
    slices = [slice_file("policy", part, 2) for part in (0, 1)]
    assert sorted(path.name for path in tmp_path.glob("policy*")) == [*slices, "policy_of_mine.safetensors"]


def test_a_full_disk_keeps_the_last_checkpoint_and_is_one_message(tmp_path: Path) -> None:
    save_checkpoint(writer("a"), checkpoint_path(tmp_path, 1), 1)

    def full(place: str) -> None:
        Path(place).mkdir(parents=True)
        (Path(place) / "state.json").write_text("half", encoding="utf-8")
        # As safetensors says it.
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(RunError, match=r"no room left on the disk .* the newest one is .*iteration_000001; make room"):
        save_checkpoint(SimpleNamespace(save_to_path=full), checkpoint_path(tmp_path, 2), 1)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["iteration_000001"]
    assert checkpoint_state(newest_checkpoint(tmp_path)) == {"text": "a"}


def test_a_disk_that_became_read_only_is_one_message(tmp_path: Path) -> None:
    save_checkpoint(writer("a"), checkpoint_path(tmp_path, 1), 1)

    def refused(place: str) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), place)

    words = r"iteration_000002: may not be written \(.*Read-only.*\); the newest one is .*iteration_000001; give the right to write"
    with pytest.raises(RunError, match=words):
        save_checkpoint(SimpleNamespace(save_to_path=refused), checkpoint_path(tmp_path, 2), 1)

    @one_clear_error
    def command() -> None:
        refused("result.json")

    with pytest.raises(SystemExit) as ended:
        command()
    assert ended.value.code == 1


def test_other_names_are_passed_over_and_damaged_ones_are_named(tmp_path: Path) -> None:
    for iteration in (3, 6):
        save_checkpoint(writer("a"), checkpoint_path(tmp_path, iteration), None)
    (tmp_path / "checkpoints" / "iteration_backup").mkdir()
    (tmp_path / "checkpoints" / "iteration_000009").touch()
    (checkpoint_path(tmp_path, 6) / "manifest.json").write_text("[]", encoding="utf-8")
    with pytest.warns(OptionWarning) as told:
        assert newest_checkpoint(tmp_path) == checkpoint_path(tmp_path, 3)
    said = sorted(str(warning.message) for warning in told)
    assert [("iteration_000006 is left out" in one, "iteration_000009 is left out" in one) for one in said] == [
        (True, False),
        (False, True),
    ]
    (checkpoint_path(tmp_path, 3) / "algorithm_state.pkl").touch()
    assert unknown_files(checkpoint_path(tmp_path, 3)) == ["algorithm_state.pkl"]
