"""Runs and sweeps at a URI of an S3 server, on machines that vanish: `make test-storage`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import yaml

from tppo_rl.core.storage import Storage, storage_at
from tppo_rl.experiment.result_log import read_results

SERVER = os.environ.get("TPPO_RL_STORAGE_SERVER")
"""Command of an S3 server, which takes a port with `-p`."""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SERVER is None, reason="make test-storage installs the server"),
]

RUN: dict[str, Any] = {
    "run": "TPPO",
    "env": "tppo_rl/ArithmeticChain-v0",
    "stop": {"training_iteration": 4},
    "checkpoint_config": {"checkpoint_frequency": 1, "num_to_keep": 2},
    "config": {
        "policy_model": "tppo_rl/arithmetic-chain",
        "num_envs_per_env_runner": 8,
        "window_length": 12,
        "max_response_length": 64,
        "train_batch_size_per_learner": 100,
        "evaluation_interval": 50,
        "evaluation_duration": 8,
    },
}


@pytest.fixture(scope="module")
def query() -> Iterator[str]:
    """What a URI ends with so that it means the server, which has a bucket `bucket`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert SERVER is not None
    server = subprocess.Popen(
        [SERVER, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.environ |= {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    query = f"?scheme=http&endpoint_override=127.0.0.1:{port}"
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        pafs.FileSystem.from_uri(f"s3://bucket{query}&allow_bucket_creation=true")[0].create_dir("bucket")
        yield query
    finally:
        server.terminate()
        server.wait()


class Machine:
    """A folder in which commands run, and which vanishes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def start(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "tppo_rl", *words],
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, status: int = 0) -> str:
        process = self.start(*words)
        output = process.communicate(timeout=300)[0]
        assert process.returncode == status, output
        return output

    def vanish(self) -> None:
        shutil.rmtree(self.folder)


def kill_all(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def names(storage: Storage) -> set[str]:
    return {name.split("/")[1] for name in storage.sizes() if name.startswith("checkpoints/")}


def test_a_run_goes_on_on_another_machine(tmp_path: Path, query: str) -> None:
    uri = f"s3://bucket/my runs{query}"
    storage = storage_at(uri, "x").joined("small")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"small": RUN}), encoding="utf-8")
    command = ("train", "file", str(tmp_path / "run.yaml"), "--results", uri)

    first = Machine(tmp_path / "first")
    process = first.start(*command, "--set", "stop.training_iteration=1000")
    while process.poll() is None and not {"iteration_000002", "iteration_000003"} & names(storage):
        time.sleep(0.05)
    kill_all(process)
    first.vanish()

    second = Machine(tmp_path / "second")
    assert "holds an earlier run; go on with --resume" in second.run(*command, status=2)
    plan = second.run(*command, "--resume", "--dry-run")
    assert "would go on from s3://bucket/my runs/small" in plan.replace("%20", " ")
    assert not (second.folder / "runs").exists()
    limit = max(int(name[-6:]) for name in names(storage)) + 3
    output = second.run(*command, "--resume", "--set", f"stop.training_iteration={limit}")
    assert "fetched s3://bucket/my runs/small" in output
    folder = second.folder / "runs" / "s3" / "bucket" / "my runs" / "small"
    assert f"resumed from {folder}" in output
    assert names(storage) == {f"iteration_{limit - 1:06d}", f"iteration_{limit:06d}"}
    assert sorted({result["training_iteration"] for result in read_results(folder)}) == list(range(1, limit + 1))
    kept = storage.sizes()
    here = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert here == {*kept}
    assert all((folder / name).stat().st_size == size for name, size in kept.items())
    assert len(json.loads(storage.read("provenance.json") or b"")) == 1
    second.vanish()

    third = Machine(tmp_path / "third")
    looked = third.run("doctor", storage.uri)
    assert f"TPPO after {limit} updates" in looked
    assert "optimizers.safetensors" in looked
    third.run("export", storage.uri, "model")
    assert (third.folder / "model" / "model.safetensors").is_file()
    assert "accuracy" in third.run("evaluate", storage.uri, "--n", "1", "--problems", "4")
    settings = json.loads((third.folder / "evaluations" / "small" / "settings.json").read_text(encoding="utf-8"))
    assert settings["model"].startswith("s3://bucket/my runs/small")
    assert settings["model"].endswith(f"/checkpoints/iteration_{limit:06d}")
    assert "prompt" in third.run("rollouts", storage.uri, "--limit", "2")


def test_sigterm_leaves_everything_there(tmp_path: Path, query: str) -> None:
    uri = f"s3://bucket/stopped{query}"
    storage = storage_at(uri, "x").joined("small")
    body = RUN | {"stop": {"training_iteration": 1000}, "checkpoint_config": {}}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"small": body}), encoding="utf-8")
    machine = Machine(tmp_path / "machine")
    process = machine.start("train", "file", str(tmp_path / "run.yaml"), "--results", uri)
    assert process.stdout is not None
    for line in process.stdout:
        if "iteration 2 " in line:
            break
    process.terminate()
    output = process.stdout.read()
    assert process.wait(120) == 128 + signal.SIGTERM, output
    (name,) = names(storage)
    assert f"saves {machine.folder}" in output
    assert json.loads(storage.read("summary.json") or b"")["updates"] == int(name[-6:])
    assert (
        storage.read("result.json")
        == (machine.folder / "runs" / "s3" / "bucket" / "stopped" / "small" / "result.json").read_bytes()
    )


def test_a_bucket_that_is_not_there_is_one_error(tmp_path: Path, query: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"small": RUN}), encoding="utf-8")
    command = ("train", "file", str(tmp_path / "run.yaml"), "--results", f"s3://nowhere/runs{query}")
    output = Machine(tmp_path / "machine").run(*command, status=2)
    assert "error: --results='s3://nowhere/runs/small" in output
    assert "cannot be written: Bucket 'nowhere' not found" in output
    assert "starting" not in output


def test_a_sweep_goes_on_on_another_machine(tmp_path: Path, query: str) -> None:
    """Tune writes there itself."""
    uri = f"s3://bucket/sweeps{query}"
    storage = storage_at(uri, "x").joined("small")
    config = RUN["config"] | {"window_length": {"grid_search": [12, 24]}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"small": RUN | {"config": config}}), encoding="utf-8")
    command = ("tune", "file", str(tmp_path / "sweep.yaml"), "--results", uri)
    first = Machine(tmp_path / "first")
    process = first.start(*command)
    while process.poll() is None and not any(name.endswith("/summary.json") for name in storage.sizes()):
        time.sleep(0.2)
    kill_all(process)
    first.vanish()

    second = Machine(tmp_path / "second")
    assert "holds an earlier sweep; go on with --resume" in second.run(*command, status=2)
    output = second.run(*command, "--resume")
    assert "1 trials have ended before" in output
    sizes = storage.sizes()
    for name in ("summary.json", "result.json", "progress.csv", "params.json"):
        assert sum(path.endswith(f"/{name}") for path in sizes) == 2, name
    trials = {path.split("/")[0] for path in sizes if path.endswith("/summary.json")}
    for trial in trials:
        lines = (storage.read(f"{trial}/result.json") or b"").splitlines()
        assert [json.loads(line)["training_iteration"] for line in lines] == [1, 2, 3, 4]
        assert any(path.startswith(f"{trial}/rollouts/") for path in sizes)
        assert any(path.startswith(f"{trial}/checkpoint_") and path.endswith("/manifest.json") for path in sizes)
    assert len(json.loads(storage.read("provenance.json") or b"")) == 1
    second.run("report", storage.uri, "--out", "report")
    assert (second.folder / "report" / "report.html").is_file()


def test_a_comparison_repeats_no_run_that_has_ended_elsewhere(tmp_path: Path, query: str) -> None:
    uri = f"s3://bucket/compared{query}"
    storage = storage_at(uri, "x").joined("pair")
    body = RUN | {"config": RUN["config"] | {"evaluation_interval": 2}}
    (tmp_path / "pair.yaml").write_text(yaml.safe_dump({"a": body, "b": body}), encoding="utf-8")
    command = ("compare", str(tmp_path / "pair.yaml"), "--seeds", "1", "--results", uri)
    first = Machine(tmp_path / "first")
    process = first.start(*command)
    while process.poll() is None and storage.read("a-seed0/summary.json") is None:
        time.sleep(0.2)
    kill_all(process)
    first.vanish()
    second = Machine(tmp_path / "second")
    output = second.run(*command)
    assert "a-seed0 has ended before" in output
    assert {"comparison.html", "curves.csv", "comparison.json", "a-seed0/options.json"} <= {*storage.sizes()}
    assert (storage.read("comparison.html") or b"") == (
        second.folder / "runs" / "s3" / "bucket" / "compared" / "pair" / "comparison.html"
    ).read_bytes()
