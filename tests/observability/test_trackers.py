"""What experiment trackers get, read back from the files that they write offline: `make test-trackers`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tppo_rl.config.options import Options
from tppo_rl.config.trackers import TRACKERS, check_trackers
from tppo_rl.core.errors import OptionError
from tppo_rl.observability import trackers
from tppo_rl.observability.trackers import IDS, Trackers

ROOT = Path(__file__).parents[2]
PACKAGES = os.environ.get("TPPO_RL_TRACKERS")
"""Folder with the packages, which `make test-trackers` installs: those of MLflow and of vLLM do not go together."""

installed = pytest.mark.skipif(PACKAGES is None, reason="make test-trackers installs the packages")


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"wandbb": {}}, r"trackers='wandbb': unknown.*wandb"),
        (
            {"wandb": {"project": "x"}},
            r"trackers\.wandb=\{'project': 'x'\}: its package is not installed: pip install wandb",
        ),
    ],
)
def test_a_tracker_that_is_not_there_is_refused(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        check_trackers(wanted)


def test_what_is_checked_is_what_there_is() -> None:
    assert set(trackers._KINDS) == set(TRACKERS)


class _Broken:
    run_id = "7"
    calls = 0

    def __init__(self, *arguments: Any) -> None:
        pass

    def scalars(self, step: int, values: Any) -> None:
        type(self).calls += 1
        raise ConnectionError("no network")


def test_a_tracker_that_fails_is_named_once_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(trackers._KINDS, "wandb", _Broken)
    found = Trackers({"wandb": {}}, {}, tmp_path)
    for step in range(3):
        found.scalars(step, {"critic/loss": 1.0})
    found.close()
    assert _Broken.calls == 1
    (record,) = caplog.records
    assert "trackers.wandb failed and is left out" in record.getMessage()
    assert "ConnectionError: no network" in record.getMessage()


_RUN = """
import json, os, sys
from pathlib import Path
import numpy as np
sys.path.append({packages!r})
sys.path.insert(0, {tests!r})
from helpers import make_fragment
from test_recorder import record, update
from tppo_rl.config.options import Options
from tppo_rl.config.trackers import check_trackers
from tppo_rl.observability.recorder import RunRecorder
from tppo_rl.rollout.ledger import TokenCounts
from tppo_rl.rollout.statistics import RolloutStatistics

wanted = json.loads({wanted!r})
check_trackers(wanted)
run = RunRecorder(Options.of(trackers=wanted), Path({folder!r}), lambda tokens: " ".join(map(str, tokens)))
for step in {steps!r}:
    rollouts = RolloutStatistics(fragments=[make_fragment(terminated=True, correct=True, rewards=[0.0, 0.0, 1.0])])
    record(run, update(value_loss=step / 8), counts=TokenCounts(step, 3, 0, 0, {{}}), rollouts=rollouts)
run.close()
{read}
"""


def _run(folder: Path, wanted: dict[str, Any], steps: list[int], read: str = "") -> str:
    """Records iterations in a process that has the packages, and returns what `read` prints."""
    script = _RUN.format(
        packages=PACKAGES,
        tests=str(Path(__file__).parent),
        wanted=json.dumps(wanted),
        folder=str(folder),
        steps=steps,
        read=read,
    )
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "WANDB_MODE": "offline",
        "TRACKIO_DIR": str(folder / "trackio"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        cwd=folder,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@installed
@pytest.mark.slow
def test_wandb_offline(tmp_path: Path) -> None:
    _run(tmp_path, {"wandb": {"project": "words"}}, [8, 16])
    first = json.loads((tmp_path / IDS).read_text())
    _run(tmp_path, {"wandb": {"project": "words"}}, [24])
    assert json.loads((tmp_path / IDS).read_text()) == first, "the run goes on under its id"
    read = f"""
import glob, struct
from wandb.proto import wandb_internal_pb2

def records(data):
    # The log of LevelDB: blocks of 32 KiB, in which every part of a record has checksum, length and place in the record.
    place, parts = 7, []
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        parts.append(data[place + 7 : place + 7 + length])
        place += 7 + length
        if kind in (1, 4):
            yield b"".join(parts)
            parts = []

for file in sorted(glob.glob(os.path.join({str(tmp_path)!r}, "wandb", "offline-run-*", "*.wandb"))):
    for data in records(Path(file).read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {{"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}}
            print("ROW", json.dumps([items.get("_step"), items.get("critic/loss"), any(name.startswith("rollouts") for name in items)]))
"""
    rows = [json.loads(line[4:]) for line in _run(tmp_path, {}, [], read).splitlines() if line.startswith("ROW")]
    assert [row for row in rows if row[1] is not None] == [[8, 1.0, True], [16, 2.0, True], [24, 3.0, True]]


@installed
@pytest.mark.slow
def test_mlflow_with_a_database_of_its_own(tmp_path: Path) -> None:
    wanted = {"mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db", "experiment": "words"}}
    _run(tmp_path, wanted, [8, 16])
    read = f"""
from mlflow import MlflowClient
client = MlflowClient({wanted["mlflow"]["tracking_uri"]!r})
(found,) = client.search_runs([client.get_experiment_by_name("words").experiment_id])
print("ROW", json.dumps([[m.step, m.value] for m in client.get_metric_history(found.info.run_id, "critic/loss")]))
print("ROW", json.dumps(sorted(a.path for a in client.list_artifacts(found.info.run_id, "rollouts"))))
print("ROW", json.dumps([found.info.status, found.data.params["window_length"]]))
"""
    lines = _run(tmp_path, wanted, [24], read).splitlines()
    rows = [json.loads(line[4:]) for line in lines if line.startswith("ROW")]
    assert rows[0] == [[8, 1.0], [16, 2.0], [24, 3.0]]
    assert len(rows[1]) == 3
    assert rows[2] == ["FINISHED", str(Options.of().rollout.window_length)]


@installed
@pytest.mark.slow
def test_trackio_on_this_machine(tmp_path: Path) -> None:
    wanted = {"trackio": {"project": "words"}}
    _run(tmp_path, wanted, [8, 16])
    read = """
from trackio.sqlite_storage import SQLiteStorage
(run,) = SQLiteStorage.get_runs("words")
for row in SQLiteStorage.get_logs("words", run):
    print("ROW", json.dumps([row.get("step"), row.get("critic/loss"), "rollouts" in row]))
"""
    rows = [json.loads(line[4:]) for line in _run(tmp_path, wanted, [24], read).splitlines() if line.startswith("ROW")]
    assert [row[:2] for row in rows if row[1] is not None] == [[8, 1.0], [16, 2.0], [24, 3.0]]
    assert any(row[2] for row in rows)


@installed
@pytest.mark.slow
def test_an_argument_that_a_tracker_does_not_take_is_refused(tmp_path: Path) -> None:
    read = """
from tppo_rl.core.errors import OptionError
for wanted in ({"wandb": {"projects": "x"}}, {"mlflow": {"uri": "x"}}, {"trackio": {"projekt": "x"}}):
    try:
        check_trackers(wanted)
    except OptionError as error:
        print("ROW", error)
"""
    refused = [line for line in _run(tmp_path, {}, [], read).splitlines() if line.startswith("ROW")]
    assert len(refused) == 3
    assert "trackers.wandb.projects='x'" in refused[0]
    assert "trackers.wandb.project" in refused[0]
    assert "trackers.mlflow.uri='x'" in refused[1]
    assert "trackers.trackio.projekt='x'" in refused[2]
