"""Sweeps and comparisons at a URI: what is fetched of them, and what is written there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from storages import watched_storage

from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.core.checkpoint_files import write_checkpoint
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.experiment.checkpoints import checkpoint_path
from tppo_rl.experiment.stored_checkpoints import copy_checkpoint
from tppo_rl.tune.stored_comparison import OPTIONS_FILE, StoredComparison, options_text
from tppo_rl.tune.sweep_place import SweepPlace


def make_run(**config: object) -> Experiment:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", **config},
    }
    return make_experiment("small-seed0", body)


def test_files_of_a_sweep_come_and_those_that_changed_go_back(tmp_path: Path) -> None:
    changes: list[str] = []
    results = watched_storage(tmp_path, changes.append)
    place, sweep = SweepPlace(results, "sweep"), results.joined("sweep")
    assert str(place) == "watched://kept/run/sweep"
    assert (place.path, place.filesystem) == ("kept/run/sweep", results.filesystem)
    assert not place.is_in_use()
    sweep.write("experiment_state-1.json", b"old")
    sweep.write("tuner.pkl", b"not read")
    sweep.write("trial_1/summary.json", b"{}")
    sweep.write("trial_1/checkpoint_000001/state.json", b"large")
    assert place.is_in_use()
    assert place.num_ended() == 1
    changes.clear()
    with place.files() as folder:
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert found == {"experiment_state-1.json", "trial_1/summary.json"}
        (folder / "experiment_state-1.json").write_text("new")
        (folder / "sweep.json").write_text("[]")
    assert {words for words in changes if words.startswith("open")} == {
        "open kept/run/sweep/experiment_state-1.json",
        "open kept/run/sweep/sweep.json",
    }
    assert sweep.read("experiment_state-1.json") == b"new"
    place.remove()
    assert not place.is_in_use()


def test_a_sweep_of_this_machine_is_its_folder(tmp_path: Path) -> None:
    place = SweepPlace(tmp_path, "sweep")
    assert not place.is_in_use()
    (tmp_path / "sweep" / "trial").mkdir(parents=True)
    (tmp_path / "sweep" / "trial" / "summary.json").touch()
    assert place.is_in_use()
    assert place.num_ended() == 1
    with place.files() as folder:
        assert folder == tmp_path / "sweep"
    assert (place.path, place.filesystem) == (str(tmp_path / "sweep"), None)
    place.remove()
    assert not (tmp_path / "sweep").exists()


def test_a_run_of_a_comparison_is_claimed_and_fetched_when_it_has_ended(tmp_path: Path) -> None:
    storage = watched_storage(tmp_path / "there")
    comparison, run, folder = StoredComparison(storage), make_run(), tmp_path / "here"
    kept = storage.joined(run.name)
    comparison.claim(run, folder)
    assert kept.read(OPTIONS_FILE) == options_text(run).encode()
    with pytest.raises(
        OptionError, match=r"small-seed0: watched://kept/run/small-seed0 holds a run with other options"
    ):
        comparison.claim(make_run(lr=1e-3), folder)
    assert not comparison.has_checkpoint(run)
    write_checkpoint(checkpoint_path(tmp_path / "worked", 3), {}, {"iteration": 3})
    copy_checkpoint(checkpoint_path(tmp_path / "worked", 3), kept, 1)
    assert comparison.has_checkpoint(run)
    kept.write("result.json", b"{}\n")
    kept.write("summary.json", json.dumps({"interrupted": True}).encode())
    comparison.claim(run, folder)
    assert not folder.exists(), "it has not ended"
    kept.write("summary.json", json.dumps({"interrupted": False}).encode())
    for _ in range(2):
        comparison.claim(run, folder)
        assert {path.name for path in folder.iterdir()} == {"result.json", "summary.json", OPTIONS_FILE}
    assert [path.name for path in tmp_path.glob("here*")] == ["here"], "fetched once"


def test_figures_that_cannot_be_copied_are_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tppo_rl.core.storage.time.sleep", lambda seconds: None)

    def refuse(words: str) -> None:
        if "page" in words:
            raise PermissionError("access denied")

    comparison = StoredComparison(watched_storage(tmp_path / "there", refuse))
    (tmp_path / "page").touch()
    with pytest.raises(RunError, match=r"watched://kept/run cannot be written: access denied; .* holds everything"):
        comparison.put(tmp_path, ["page"])
