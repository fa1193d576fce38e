"""Runs at a URI: whatever ends a copy, a whole checkpoint is chosen there; what was copied is fetched, and damages are named."""

from __future__ import annotations

import posixpath
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from storages import Killed, killing_after, watched_storage

from tppo_rl.core import storage as storage_module
from tppo_rl.core.checkpoint_files import check_every_file, checkpoint_state, write_checkpoint
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.storage import Storage
from tppo_rl.experiment.checkpoints import checkpoint_path, newest_checkpoint, put_checkpoint, write_partial
from tppo_rl.experiment.mirror import Mirror, copy_run
from tppo_rl.experiment.saver import Saver
from tppo_rl.experiment.stored_checkpoints import stored_checkpoints
from tppo_rl.experiment.stored_runs import called, check_free, fetch_to_resume, fetched, files_of_run


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module.time, "sleep", lambda seconds: None)


def save(folder: Path, iteration: int, number: int | None = None) -> Path:
    """Saves a checkpoint, and a line of results before it."""
    number = iteration if number is None else number

    def write(place: str) -> None:
        write_checkpoint(Path(place), {"number": number, "w": np.full(9, number)}, {"iteration": iteration})

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "result.json").open("a", encoding="utf-8") as file:
        file.write(f'{{"training_iteration": {iteration}}}\n')
    target = checkpoint_path(folder, iteration)
    write_partial(target, write)
    put_checkpoint(target, None)
    return target


def mirror_of(folder: Path, storage: Storage, **more: Any) -> Mirror:
    return Mirror(folder, storage, more.pop("num_to_keep", 2), say=more.pop("say", print), **more)


def stored(folder: Path, *iterations: int, before: Callable[[str], None] = lambda words: None) -> Storage:
    """A run at a place in `folder / "there"`, worked on in `folder / "here"`."""
    storage = watched_storage(folder / "there", before)
    with mirror_of(folder / "here", storage, num_to_keep=None) as mirror:
        for iteration in iterations:
            save(folder / "here", iteration)
            mirror.begin()
    return storage


@pytest.mark.parametrize("num_to_keep", [1, 2, None])
@pytest.mark.parametrize("again", [False, True], ids=["new iteration", "same iteration"])
def test_a_kill_at_any_change_leaves_a_whole_checkpoint(tmp_path: Path, num_to_keep: int | None, again: bool) -> None:
    """Whatever change is the last one: what another machine fetches is whole, and is the old one or the new one."""
    folder, source = tmp_path / "here", tmp_path / "source"
    iterations = (1, 2, 2, 4) if again else (1, 2, 3, 4)
    checkpoints = [save(source / str(number), iteration, number) for number, iteration in enumerate(iterations, 1)]
    lines = [f'{{"training_iteration": {number}, "text": "{"x" * 30}"}}' for number in (1, 2, 3, 4)]

    def copy(number: int, storage: Storage) -> None:
        """What a run copies after its update `number`."""
        folder.mkdir(exist_ok=True)
        (folder / "result.json").write_text("".join(f"{line}\n" for line in lines[:number]))
        copy_run(folder, files_of_run(folder), checkpoints[number - 1], storage, num_to_keep, sent={})

    seen, count = set(), 0
    while True:
        there = tmp_path / str(count)
        storage = watched_storage(there)
        copy(1, storage)
        copy(2, storage)
        killed = False
        try:
            copy(3, watched_storage(there, killing_after(count)))
        except Killed:
            killed = True
        elsewhere = there / "elsewhere"
        fetch_to_resume(storage, elsewhere, "--results")
        state = checkpoint_state(newest_checkpoint(elsewhere))
        assert state["number"] in (2, 3)
        np.testing.assert_array_equal(state["w"], np.full(9, state["number"]))
        seen.add(state["number"])
        results = (elsewhere / "result.json").read_text().splitlines()
        assert results == lines[: len(results)]
        assert len(results) >= state["number"] or state["number"] == 2
        # The run goes on there: nothing that was begun is left.
        copy(4, storage)
        sizes = storage.sizes()
        whole = [found.place for found in stored_checkpoints(storage, sizes) if not found.damages(sizes)]
        assert whole[0] == "checkpoints/iteration_000004"
        assert len(whole) <= (num_to_keep or 4)
        others = {posixpath.dirname(name) for name in sizes if name.startswith("checkpoints/")} - {*whole}
        # Where all are kept, so is one whose manifest was cut.
        assert all(num_to_keep is None and f"{place}/manifest.json" in sizes for place in others)
        assert not any("partial" in name for name in sizes)
        if not killed:
            break
        count += 1
    assert count > 10, "there are as many changes"
    assert seen == {2, 3}


def test_everything_is_there_in_the_end_and_nothing_is_copied_twice(tmp_path: Path) -> None:
    changes: list[str] = []
    storage = watched_storage(tmp_path / "there", changes.append)
    folder = tmp_path / "here"
    with mirror_of(folder, storage) as mirror:
        assert mirror.holds() == "watched://kept/run holds no checkpoint"
        for iteration in (1, 2, 3):
            (folder / "rollouts").mkdir(parents=True, exist_ok=True)
            (folder / "rollouts" / f"{iteration}.parquet").write_bytes(b"rows")
            mirror.wait()
            save(folder, iteration)
            mirror.begin()
        mirror.wait()
        assert mirror.holds() == "watched://kept/run holds the checkpoint of iteration 3"
        (folder / ".summary.json.partial").write_text("half")
        (folder / "summary.json").write_text("{}")
    sizes = storage.sizes()
    assert {name for name in sizes if not name.startswith("checkpoints/")} == {
        "result.json",
        "summary.json",
        *(f"rollouts/{iteration}.parquet" for iteration in (1, 2, 3)),
    }
    assert {name.split("/")[1] for name in sizes if name.startswith("checkpoints/")} == {
        "iteration_000002",
        "iteration_000003",
    }
    opened = [words for words in changes if words.startswith("open ")]
    assert opened.count("open kept/run/rollouts/1.parquet") == 1
    assert opened.count("open kept/run/checkpoints/iteration_000003/manifest.json") == 1
    assert opened.count("open kept/run/result.json") == 3


def test_a_run_waits_for_the_copy_of_what_it_will_remove(tmp_path: Path) -> None:
    """Training goes on meanwhile."""
    may_go_on, reached = threading.Event(), threading.Event()

    def before(words: str) -> None:
        if "iteration_000001/state.json" in words:
            reached.set()
            assert may_go_on.wait(20)

    storage = watched_storage(tmp_path / "there", before)
    save(tmp_path / "here", 1)
    with mirror_of(tmp_path / "here", storage) as mirror:
        mirror.begin()
        assert reached.wait(20)
        assert mirror.holds().endswith("no checkpoint")
        threading.Timer(0.2, may_go_on.set).start()
        mirror.wait()
        assert mirror.holds().endswith("of iteration 1")


@pytest.mark.parametrize("in_background", [False, True])
def test_what_is_being_copied_is_not_removed(tmp_path: Path, in_background: bool) -> None:
    """A run that keeps one checkpoint saves the next one while the first one is copied."""
    may_go_on = threading.Event()

    def before(words: str) -> None:
        if words.startswith("open") and "iteration_000001" in words:
            assert may_go_on.wait(20)

    storage, folder = watched_storage(tmp_path / "there", before), tmp_path / "here"
    save(folder, 1)

    def write(place: str) -> None:
        write_checkpoint(Path(place), {"number": 2}, {"iteration": 2})

    algorithm = SimpleNamespace(save_to_path=write, begin_checkpoint=lambda place: partial(write, str(place)))
    with mirror_of(folder, storage, num_to_keep=1) as mirror:
        mirror.begin()
        threading.Timer(0.2, may_go_on.set).start()
        with Saver(1, mirror, in_background=in_background, say=print) as saver:
            saver.save(algorithm, checkpoint_path(folder, 2))
        mirror.wait()
        assert mirror.holds().endswith("of iteration 2")
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iteration_000002"]


def test_what_fails_for_a_while_is_tried_again(tmp_path: Path) -> None:
    failures = 3

    def before(words: str) -> None:
        nonlocal failures
        if "iteration_000001/state.json" in words and failures:
            failures -= 1
            raise OSError("slow down")

    storage = stored(tmp_path, 1, before=before)
    assert not failures
    assert fetch_to_resume(storage, tmp_path / "elsewhere", "--results").words.startswith(
        "fetched watched://kept/run into"
    )


def test_what_cannot_be_copied_is_one_message_and_is_copied_by_the_next_try(tmp_path: Path) -> None:
    broken = True

    def before(words: str) -> None:
        if broken and "iteration_00000" in words:
            raise PermissionError("access denied")

    stored(tmp_path, 1)
    storage, folder = watched_storage(tmp_path / "there", before), tmp_path / "here"
    message = (
        r"^watched://kept/run cannot be written, after several tries: access denied; watched://kept/run holds the checkpoint of iteration "
        rf"1, and {folder} holds everything"
    )
    said: list[str] = []

    def run() -> None:
        with mirror_of(folder, storage, newest=1, say=said.append) as mirror:
            save(folder, 2)
            mirror.begin()
            save(folder, 3)
            with pytest.raises(RunError, match=message):
                mirror.begin()
            raise KeyError("what the run failed by")

    with pytest.raises(KeyError):
        run()
    assert [line.partition(",")[0] for line in said] == ["watched://kept/run cannot be written"]
    with pytest.raises(RunError, match=message), mirror_of(folder, storage, newest=1):
        pass
    with mirror_of(folder, storage, at_once=lambda: True) as mirror:
        pass
    broken = False
    assert fetch_to_resume(storage, folder, "--results").words == f"{folder} holds all of watched://kept/run"
    with mirror_of(folder, storage, newest=1) as mirror:
        pass
    assert mirror.holds().endswith("of iteration 3")


def test_another_machine_goes_on_from_what_is_there(tmp_path: Path) -> None:
    storage = stored(tmp_path, 1, 2)
    there = tmp_path / "there" / "kept" / "run"
    with (there / "result.json").open("a", encoding="utf-8") as file:
        file.write('{"training_iter')
    folder = tmp_path / "elsewhere"
    said = fetch_to_resume(storage, folder, "--results").words
    assert said == f"fetched watched://kept/run into {folder}"
    assert checkpoint_state(newest_checkpoint(folder))["number"] == 2
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["iteration_000002"]
    assert (folder / "result.json").read_text().splitlines()[1:] == ['{"training_iteration": 2}']


def test_a_folder_here_that_went_further_stays_and_another_one_is_renamed(tmp_path: Path) -> None:
    storage, folder = stored(tmp_path, 1), tmp_path / "here"
    save(folder, 2)
    assert fetch_to_resume(storage, folder, "--results") == (f"{folder} holds all of watched://kept/run", 1)
    assert checkpoint_state(newest_checkpoint(folder))["number"] == 2
    # The same iterations of another run.
    (folder / "result.json").write_text('{"training_iteration": 7}\n')
    said = fetch_to_resume(storage, folder, "--results").words
    assert "what was there is in " in said
    assert checkpoint_state(newest_checkpoint(folder))["number"] == 1
    other = tmp_path / "other"
    save(other, 1, 5)
    assert "what was there is in " in fetch_to_resume(storage, other, "--results").words
    assert checkpoint_state(newest_checkpoint(other))["number"] == 1


def test_all_damaged_files_are_named_and_a_whole_checkpoint(tmp_path: Path) -> None:
    storage = stored(tmp_path, 1, 2)
    there = tmp_path / "there" / "kept" / "run" / "checkpoints" / "iteration_000002"
    whole = {path: path.read_bytes() for path in there.iterdir()}
    (there / "state.json").write_bytes(b"{}")
    (there / "arrays.safetensors").unlink()
    for match in (
        r"^--results: watched://kept/run: checkpoints/iteration_000002: arrays.safetensors is missing; state.json has 2 bytes, and "
        r"\d+ were written; checkpoints/iteration_000001 is there in its sizes: remove the other one to go on from it",
    ):
        with pytest.raises(OptionError, match=match):
            fetch_to_resume(storage, tmp_path / "elsewhere", "--results")
    for path, data in whole.items():
        path.write_bytes(data)
    (there / "state.json").write_bytes(whole[there / "state.json"].replace(b"2", b"3"))
    with pytest.raises(
        OptionError, match=r"iteration_000002: state.json is not what was written.*iteration_000001 is there"
    ):
        fetch_to_resume(storage, tmp_path / "elsewhere", "--results")


def test_what_is_below_a_uri_stands_before_its_query() -> None:
    text = "checkpoint='/here/run/checkpoints/iteration_000004': policy.safetensors; /here/run"
    assert called(text, "/here/run", "s3://kept/run?scheme=http") == (
        "checkpoint='s3://kept/run/checkpoints/iteration_000004?scheme=http': policy.safetensors; s3://kept/run?scheme=http"
    )
    assert called(text, "/here/run", "/here/run") == text


def test_a_new_run_never_writes_over_another_one(tmp_path: Path) -> None:
    storage = watched_storage(tmp_path / "there")
    check_free(storage, "--results")
    storage.write("provenance.json", b"[]")
    check_free(storage, "--results")
    with pytest.raises(OptionError, match="holds no checkpoint"):
        fetch_to_resume(storage, tmp_path / "elsewhere", "--results")
    save(tmp_path / "elsewhere", 4)
    with pytest.raises(
        OptionError, match=r"elsewhere on this machine has that of iteration 4; go on from there with --results"
    ):
        fetch_to_resume(storage, tmp_path / "elsewhere", "--results")
    stored(tmp_path, 1)
    with pytest.raises(OptionError, match=r"^--results: watched://kept/run holds an earlier run; go on with --resume"):
        check_free(storage, "--results")


def test_commands_that_read_get_what_they_need(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = stored(tmp_path, 1, 2)
    storage.write("rollouts/1.parquet", b"rows")
    places = {"watched://run": storage, "watched://2": replace(storage, path="kept/run/checkpoints/iteration_000001")}
    monkeypatch.setattr("tppo_rl.experiment.stored_runs.storage_at", lambda uri, key: places[uri])

    def found(uri: str, **more: Any) -> set[str]:
        with fetched(uri, "RUN", **more) as folder:
            place = Path(folder)
            return {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}

    newest = {f"checkpoints/iteration_000002/{name}" for name in ("manifest.json", "state.json", "arrays.safetensors")}
    assert found("watched://run") == newest | {"result.json"}
    named = {"checkpoints/iteration_000002/manifest.json", "result.json", "rollouts/1.parquet"}
    assert found("watched://run", checkpoint="named") == named
    assert found("watched://run", checkpoint="none") == {"result.json", "rollouts/1.parquet"}
    assert found("watched://2") == {"manifest.json", "state.json", "arrays.safetensors"}
    (tmp_path / "there" / "kept" / "run" / "checkpoints" / "iteration_000002" / "state.json").unlink()
    with (
        pytest.raises(
            OptionError,
            match=r"^checkpoint='watched://run/checkpoints/iteration_000002': state.json is missing; .*_000001 is",
        ),
        fetched("watched://run", "RUN") as folder,
    ):
        check_every_file(Path(folder) / "checkpoints" / "iteration_000002")
    with fetched("file:///a/b%20c", "RUN") as folder:
        assert folder == "/a/b c"
    with fetched("org/model", "RUN") as folder:
        assert folder == "org/model"
