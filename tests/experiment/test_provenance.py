from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from storages import watched_storage

from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.provenance import read_provenance, record_provenance, resume_command


def test_every_command_that_worked_on_a_folder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "run"
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/tppo-rl", "train", "file", "a b.yaml"])
    with record_provenance(folder):
        folder.mkdir()
        assert not any(folder.iterdir()), "a sweep refuses a folder that holds anything"
    monkeypatch.setattr(sys, "argv", ["/somewhere/tppo_rl/__main__.py", "train", "file", "a b.yaml", "--resume"])
    with pytest.raises(KeyboardInterrupt), record_provenance(folder):
        raise KeyboardInterrupt
    first, second = read_provenance(folder)
    assert first["command"] == "tppo-rl train file 'a b.yaml'"
    assert second["command"] == "tppo-rl train file 'a b.yaml' --resume"
    assert {"python", "torch", "ray", "machine"} <= set(first["versions"])


def test_a_command_that_was_refused_had_no_part_in_it(tmp_path: Path) -> None:
    with pytest.raises(OptionError), record_provenance(tmp_path):
        raise OptionError("holds an earlier sweep")
    assert read_provenance(tmp_path) == []


def test_what_is_kept_at_a_uri_gets_it_too_without_passwords(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["tppo-rl", "train", "--results", "s3://KEY:SECRET@bucket/runs"])
    storage, folder = watched_storage(tmp_path / "there"), tmp_path / "here"
    with record_provenance(folder, storage):
        pass
    assert storage.sizes() == {}
    storage.write("sweep.json", b"{}")
    # A sweep, which has no folder here; then a run, which has one.
    for _ in range(2):
        with record_provenance(folder, storage):
            pass
    commands = [entry["command"] for entry in json.loads(storage.read("provenance.json") or b"")]
    assert commands == ["tppo-rl train --results 's3://***@bucket/runs'"] * 2
    folder.mkdir()
    with record_provenance(folder, storage):
        pass
    assert storage.read("provenance.json") == (folder / "provenance.json").read_bytes()


def test_nothing_is_made_for_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with record_provenance(tmp_path / "nothing"):
        pass
    assert not (tmp_path / "nothing").exists()


def test_the_command_that_goes_on_has_resume_once(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", "file", "my run.yaml", "--set", "seed=1"]
    for more in ([], ["--resume"]):
        monkeypatch.setattr(sys, "argv", ["/somewhere/bin/tppo-rl", *arguments, *more])
        assert resume_command() == "tppo-rl train file 'my run.yaml' --set seed=1 --resume"
