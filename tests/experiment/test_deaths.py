"""Runs whose parts are killed or cannot start, from the command line: each heals, or ends with one message and status 1."""

from __future__ import annotations

import copy
import os
import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from test_run import EXPERIMENT, read_until, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ENDS_WITHIN_S = 60


def write_run(folder: Path, **options: Any) -> None:
    run = copy.deepcopy(EXPERIMENT)
    run["config"] |= {"evaluation_interval": None} | options
    (folder / "run.yaml").write_text(yaml.safe_dump({"small": run}), encoding="utf-8")


def child_of(process: Any, name: str) -> int:
    """Process id of a descendant whose title or command begins with a name."""
    for child in psutil.Process(process.pid).children(recursive=True):
        if (child.cmdline() or [""])[0].startswith(name):
            return int(child.pid)
    raise AssertionError(f"no process {name}")


def errors_in(output: str) -> list[str]:
    return [line for line in output.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("options", "killed", "message"),
    [
        (
            {"engine": {"multiprocessing": True}, "num_env_runners": 0, "mode": "sync"},
            "VLLM::EngineCore",
            r"^error: an engine is dead: EngineCore.* was killed by signal 9.*--resume",
        ),
        ({"num_learners": 1}, "ray::_WrappedExecutable", r"^error: learner 0 of 1 died .*--resume"),
    ],
)
def test_what_is_killed_ends_the_run_with_one_message(
    tmp_path: Path, options: dict[str, Any], killed: str, message: str
) -> None:
    write_run(tmp_path, **options)
    process = start(tmp_path)
    try:
        read_until(process, "iteration 2 ")
        os.kill(child_of(process, killed), signal.SIGKILL)
        output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert len(errors_in(output)) == 1, output
    assert re.search(message, errors_in(output)[0])
    assert "Traceback" not in output


def test_a_run_goes_on_by_itself_after_a_learner_has_died(tmp_path: Path) -> None:
    write_run(tmp_path, num_learners=1)
    text = yaml.safe_load((tmp_path / "run.yaml").read_text(encoding="utf-8"))
    text["small"] |= {
        "max_failures": 1,
        "checkpoint_config": {"checkpoint_frequency": 1},
        "stop": {"training_iteration": 12},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(text), encoding="utf-8")
    process = start(tmp_path)
    try:
        read_until(process, "iteration 2 ")
        os.kill(child_of(process, "ray::_WrappedExecutable"), signal.SIGKILL)
        output = "".join(read_until(process, "max_failures=1 has 0 left"))
        rest, _ = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, rest
    assert "Traceback" not in output + rest
    # RLlib's own words for it are many lines.
    assert "out of service" not in output + rest
    assert "iteration 12 " in rest


@pytest.mark.parametrize(
    ("engine", "killed"), [({}, "ray::VLLMEnvRunner"), ({"multiprocessing": True}, "VLLM::EngineCore")]
)
def test_an_env_runner_comes_back_when_it_or_its_engine_is_killed(
    tmp_path: Path, engine: dict[str, Any], killed: str
) -> None:
    write_run(tmp_path, engine=engine)
    process = start(tmp_path)
    try:
        read_until(process, "iteration 2 ")
        os.kill(child_of(process, killed), signal.SIGKILL)
        lines = read_until(process, "its episodes go on elsewhere")
        assert ("an engine is dead: EngineCore was killed by signal 9" in "".join(lines)) == bool(engine)
        # What was queued is trained without it.
        read_until(process, "iteration 12 ")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 130


def test_a_learner_that_dies_while_the_env_runner_is_away_ends_the_run_with_one_message(tmp_path: Path) -> None:
    write_run(tmp_path, num_learners=1)
    process = start(tmp_path)
    try:
        read_until(process, "iteration 2 ")
        for pid in [child_of(process, name) for name in ("ray::VLLMEnvRunner", "ray::_WrappedExecutable")]:
            os.kill(pid, signal.SIGKILL)
        output, _ = process.communicate(timeout=ENDS_WITHIN_S)
    finally:
        process.kill()
    assert process.returncode == 1, output
    assert [re.match("error: learner 0 of 1 died", line) is None for line in errors_in(output)] == [False], output
    assert "Traceback" not in output


def test_an_engine_that_cannot_start_says_why(tmp_path: Path) -> None:
    write_run(tmp_path, engine={"max_model_len": 10**7})
    process = start(tmp_path)
    try:
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "max_model_len" in output
