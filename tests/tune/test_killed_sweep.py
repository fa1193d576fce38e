"""A sweep that is killed in the middle goes on: ended trials stay as they are, the others go on from their checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.result_log import read_results
from tppo_rl.tune.resume import check_definition, forget_results_after, mark_ended_trials, write_definition

pytestmark = pytest.mark.integration

GRACE, LIMIT = 20, 26
SWEEP: dict[str, Any] = {
    "run": "TPPO",
    "env": "tppo_rl/ArithmeticChain-v0",
    "stop": {"training_iteration": LIMIT},
    "checkpoint_config": {"checkpoint_frequency": 2},
    "config": {
        "policy_model": "tppo_rl/arithmetic-chain",
        "num_envs_per_env_runner": 8,
        # Every response fits into one window of 64, few into one of 2: the second trial is the worse one for certain.
        "window_length": {"grid_search": [2, 64]},
        "max_response_length": 64,
        "train_batch_size_per_learner": 100,
        "rollout_log_fragments": 0,
        "record_episodes": 0,
    },
    "tune_config": {
        "metric": "policy/unfinished_fraction",
        "scheduler": {"type": "asha", "grace_period": GRACE, "reduction_factor": 1.1},
    },
}


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tppo_rl", "tune", "file", "sweep.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def trial_folder(sweep: Path, window: int) -> Path:
    (folder,) = (path for path in sweep.iterdir() if path.is_dir() and f"window_length={window}_" in f"{path.name}_")
    return folder


def wait_for(process: subprocess.Popen[str], sweep: Path, window: int) -> None:
    """Until the trial of that window has saved a checkpoint that Tune's state knows of."""
    while process.poll() is None:
        states = list(sweep.glob("experiment_state-*.json"))
        text = states[0].read_text(encoding="utf-8") if states else ""
        for trial, metadata in json.loads(text)["trial_data"] if text.endswith("}") else []:
            folder = json.loads(trial)["relative_logdir"] or ""
            # Tune pickles what it knows of checkpoints into hexadecimal digits.
            if f"window_length={window}_" in f"{folder}_" and b"checkpoint_0".hex() in metadata:
                return
        time.sleep(0.1)
    raise AssertionError(process.communicate()[0])


@pytest.mark.slow
def test_asha_goes_on_after_a_kill_and_repeats_nothing(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"small": SWEEP}), encoding="utf-8")
    sweep = tmp_path / "runs" / "small"
    process = start(tmp_path)
    wait_for(process, sweep, 64)
    os.kill(process.pid, signal.SIGKILL)
    output = process.communicate()[0]
    assert "a trial needs" in output
    assert output.index("a trial needs") < output.index("window_length=2: started")
    first, second = trial_folder(sweep, 2), trial_folder(sweep, 64)
    ended = (first / "result.json").read_bytes()
    assert len(read_results(first)) == LIMIT
    assert (first / "summary.json").is_file()
    assert not (second / "summary.json").exists()

    process = start(tmp_path, "--resume")
    output = process.communicate(timeout=180)[0]
    assert process.returncode == 0, output
    assert "1 trials have ended before" in output
    assert "window_length=2: started" not in output
    assert (first / "result.json").read_bytes() == ended
    results = read_results(second)
    iterations = [result["training_iteration"] for result in results]
    assert iterations == list(range(1, len(iterations) + 1))
    restarts = [result["training_iteration"] for result in results if result["iterations_since_restore"] == 1]
    assert len(restarts) == 2, "went on from a checkpoint"
    # ASHA knows what the first trial had reached, though that was before the kill.
    assert len(iterations) == GRACE
    assert json.loads((second / "summary.json").read_text(encoding="utf-8"))["updates"] == GRACE
    for name in ("params.json", "progress.csv", "summary.json"):
        assert (second / name).is_file()

    process = start(tmp_path, "--resume", "--set", "lr=3e-4")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 2
    assert "error: small.config=" in output


def make_sweep(**body: Any) -> Experiment:
    return make_experiment("small", SWEEP | body)


def test_a_sweep_goes_on_only_as_it_was_begun(tmp_path: Path) -> None:
    write_definition(make_sweep(), tmp_path)
    check_definition(make_sweep(), tmp_path)
    with pytest.raises(OptionError, match=r"small\.stop={'training_iteration': 9}: .* was begun with"):
        check_definition(make_sweep(stop={"training_iteration": 9}), tmp_path)


def write_state(folder: Path, statuses: dict[str, str]) -> Path:
    trials = [
        [json.dumps({"trial_id": name, "relative_logdir": name, "status": status}), "{}"]
        for name, status in statuses.items()
    ]
    path = folder / "experiment_state-2000.json"
    path.write_text(json.dumps({"trial_data": trials}), encoding="utf-8")
    return path


def test_a_trial_with_a_summary_has_ended_whatever_the_state_says(tmp_path: Path) -> None:
    path = write_state(tmp_path, {"a": "TERMINATED", "b": "RUNNING", "c": "RUNNING", "d": "ERROR"})
    for name in ("a", "b", "d"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "summary.json").touch()
    assert mark_ended_trials(tmp_path) == ["b"]
    trials = [json.loads(trial) for trial, _ in json.loads(path.read_text(encoding="utf-8"))["trial_data"]]
    assert [trial["status"] for trial in trials] == ["TERMINATED", "TERMINATED", "RUNNING", "ERROR"]
    path.write_text('{"trial_data": [')
    with pytest.raises(OptionError, match=r"--resume: .*experiment_state-2000\.json is broken"):
        mark_ended_trials(tmp_path)


def test_results_after_the_checkpoint_are_forgotten(tmp_path: Path) -> None:
    lines = [json.dumps({"training_iteration": index, "value": index * 10}) for index in (1, 2, 3)]
    (tmp_path / "result.json").write_text("\n".join(lines) + '\n{"training_iter')
    (tmp_path / "progress.csv").write_text("training_iteration,text\n1,a\n2,b\n3,c\n4")
    forget_results_after(tmp_path, 2)
    assert [result["value"] for result in read_results(tmp_path)] == [10, 20]
    assert (tmp_path / "progress.csv").read_text().splitlines() == ["training_iteration,text", "1,a", "2,b"]
    forget_results_after(tmp_path, 0)
    assert read_results(tmp_path) == []


def test_what_tune_writes_after_the_results_were_trimmed_is_there(tmp_path: Path) -> None:
    """Tune holds the file open."""
    with (tmp_path / "result.json").open("at", encoding="utf-8") as held:
        held.write('{"training_iteration": 1}\n{"training_iteration": 2}\n')
        held.flush()
        forget_results_after(tmp_path, 1)
        held.write('{"training_iteration": 2, "again": true}\n')
    assert read_results(tmp_path) == [{"training_iteration": 1}, {"training_iteration": 2, "again": True}]
