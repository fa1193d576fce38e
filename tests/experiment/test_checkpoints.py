"""Checkpoints of a folder: found, kept, replaced, and their size."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from tppo_rl.core.checkpoint_files import write_checkpoint
from tppo_rl.experiment import checkpoints
from tppo_rl.experiment.checkpoints import (
    checkpoint_path,
    checkpoint_size,
    find_newest_checkpoint,
    iteration_of,
    save_checkpoint,
    size_in_words,
)
from tppo_rl.plan.memory import Memory, Part


def writer(text: str) -> SimpleNamespace:
    """Something whose checkpoint is one file."""

    def save(place: str) -> None:
        Path(place).mkdir(parents=True)
        (Path(place) / "state").write_text(text, encoding="utf-8")
        write_checkpoint(Path(place), {"text": text}, {})

    return SimpleNamespace(save_to_path=save)


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
