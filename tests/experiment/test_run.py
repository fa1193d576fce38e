"""A run from the command line: interrupted, resumed, and never overwritten."""

from __future__ import annotations

import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.checkpoints import newest_checkpoint
from tppo_rl.experiment.result_log import ResultLog, flatten, read_results
from tppo_rl.experiment.summary import read_summary

pytestmark = pytest.mark.integration

EXPERIMENT: dict[str, Any] = {
    "run": "TPPO",
    "env": "tppo_rl/ArithmeticChain-v0",
    "stop": {"training_iteration": 1000},
    "checkpoint_config": {"checkpoint_at_end": True},
    "config": {
        "policy_model": "tppo_rl/arithmetic-chain",
        "num_envs_per_env_runner": 8,
        "window_length": 12,
        "max_response_length": 64,
        "train_batch_size_per_learner": 100,
        "evaluation_interval": 50,
        "evaluation_duration": 16,
    },
}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tppo_rl", "train", "file", "run.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    raise AssertionError("".join(lines))


@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "SIGTERM"), pytest.param(signal.SIGINT, "Ctrl-C", marks=pytest.mark.slow)]
)
def test_ctrl_c_and_sigterm_save_and_resume_goes_on(tmp_path: Path, number: signal.Signals, name: str) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"small": EXPERIMENT}), encoding="utf-8")
    process = start(tmp_path)
    read_until(process, "iteration 2 ")
    process.send_signal(number)
    output = "".join(read_until(process, "(go on: "))
    assert process.wait(60) == 128 + number
    assert "Traceback" not in output
    # It may come while a token is sampled or trained, but nothing is evaluated any more.
    assert re.search(name + r": .*, saves .*, and ends without a last evaluation. Once more ends at once; then", output)
    assert output.rstrip().endswith("train file run.yaml --resume)")
    folder = tmp_path / "runs" / "small"
    assert read_summary(folder)["interrupted"]
    assert read_summary(folder)["heldout_accuracy_after"] is None
    checkpoint = newest_checkpoint(folder)
    assert str(checkpoint) in output
    first = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert first["updates"] == int(checkpoint.name.removeprefix("iteration_")) < 1000
    assert first["tokens"]["sampled"] == sum(first["tokens"][k] for k in ("trained", "queued", "in_flight", "dropped"))
    assert (folder / "accuracy.png").is_file()

    limit = first["updates"] + 2
    process = start(tmp_path, "--resume", "--set", f"stop.training_iteration={limit}", "--set", "grad_clip=0.5")
    read_until(process, "other options than its checkpoint's: grad_clip=0.5 (was ")
    read_until(process, "resumed from")
    assert process.wait(120) == 0
    second = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert second["updates"] == limit
    assert second["tokens"]["sampled"] > first["tokens"]["sampled"]
    assert second["tokens_dropped_by_reason"] in ({}, {"resume": first["tokens"]["in_flight"]})
    assert second["heldout_accuracy_before"] == first["heldout_accuracy_before"]
    iterations = [result["training_iteration"] for result in read_results(folder)]
    assert iterations == list(range(1, limit + 1))

    # What has reached its limits is not trained beyond them, and needs no engine.
    process = start(tmp_path, "--resume", "--set", f"stop.training_iteration={limit}", "--set", "grad_clip=0.5")
    output = "".join(read_until(process, "the run has ended; raise its limit to go on: small.stop"))
    assert "resumed from" not in output
    assert "other options" not in output
    assert process.wait(120) == 0
    third = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert third["updates"] == limit
    assert third["heldout_accuracy_after"] is not None
    assert [result["training_iteration"] for result in read_results(folder)] == iterations


def test_a_folder_without_checkpoints_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no checkpoint"):
        newest_checkpoint(tmp_path)


def test_results_are_written_as_tune_writes_them(tmp_path: Path) -> None:
    log = ResultLog(tmp_path)
    for iteration in (1, 2):
        log.append({"training_iteration": iteration, "tokens": {"sampled": 5.0 * iteration}, "config": {"lr": 1}})
    assert [result["tokens"]["sampled"] for result in read_results(tmp_path)] == [5.0, 10.0]
    with (tmp_path / "progress.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows == [
        {"training_iteration": "1", "tokens/sampled": "5.0"},
        {"training_iteration": "2", "tokens/sampled": "10.0"},
    ]
    assert flatten({"a": {"b": {"c": 1}}, "d": [1]}) == {"a/b/c": 1}
