"""The live table of a sweep, from Tune's own trials."""

from __future__ import annotations

import io
import pickle
from typing import Any

import pytest
from ray.tune.experiment import Trial
from rich.console import Console
from rich.text import Text

from tppo_rl.tune.progress import SweepProgress

RESULT: dict[str, Any] = {
    "training_iteration": 5,
    "rollout": {"return_mean": 0.25},
    "tokens": {"sampled": 5000.0, "sampled_per_second": 1234.0},
    "heldout_latest": {"sampled": {"accuracy": 0.5}},
}


def make_trial(window: int, status: str, result: dict[str, Any] | None = None) -> Trial:
    trial = Trial("sweep", stub=True, config={"window_length": window}, evaluated_params={"window_length": window})
    trial.status = status
    trial.run_metadata.last_result = result or {}
    return trial


def test_table_has_reward_accuracy_speed_and_state_of_every_trial() -> None:
    text = io.StringIO()
    progress = SweepProgress({"training_iteration": 10}, 3, Console(file=text, width=100))
    trials = [
        make_trial(8, Trial.TERMINATED, RESULT | {"training_iteration": 10}),
        make_trial(16, Trial.RUNNING, RESULT),
        make_trial(32, Trial.PENDING),
    ]
    progress.on_experiment_end(trials)
    lines = [line.split() for line in text.getvalue().splitlines() if "window_length" in line]
    assert lines == [
        ["window_length=8", "ended", "10", "0.250", "50.0%", "5,000", "1,234", "-"],
        ["window_length=16", "runs", "5", "0.250", "50.0%", "5,000", "1,234", "-"],
        ["window_length=32", "waits", "-", "-", "-", "-", "-", "-"],
    ]
    assert "1 of 3 trials, ? left" in text.getvalue()


@pytest.mark.parametrize("width", [80, 100])
def test_live_table_fits_the_terminal_and_has_the_trials_that_run(width: int) -> None:
    text = io.StringIO()
    console = Console(file=text, width=width, height=14, force_terminal=True)
    progress = SweepProgress({"training_iteration": 10}, 40, console)
    trials = [make_trial(window, Trial.TERMINATED, RESULT | {"timestamp": window}) for window in range(1, 20)]
    trials += [make_trial(20, Trial.RUNNING, RESULT), *(make_trial(window, Trial.PENDING) for window in range(21, 41))]
    progress.on_step_end(0, trials)
    drawn = Text.from_ansi(text.getvalue()).plain.splitlines()
    rows = [line for line in drawn if "runs" in line or "ended" in line or "waits" in line]
    assert len(drawn) <= 14
    assert "runs" in rows[0]
    assert len(rows) > 1
    # The others have ended, the last of them first.
    assert [row.split()[:2] for row in rows[1:]] == [
        [f"window_length={window}", "ended"] for window in range(19, 20 - len(rows), -1)
    ]
    assert f"and {40 - len(rows)} trials" in text.getvalue()


def test_without_a_terminal_there_are_lines() -> None:
    text = io.StringIO()
    progress = SweepProgress({"training_iteration": 10}, 1, Console(file=text, width=100))
    trial = make_trial(8, Trial.RUNNING)
    progress.on_trial_start(0, [trial], trial)
    progress.on_trial_result(0, [trial], trial, RESULT)
    trial.run_metadata.last_result = RESULT
    progress.on_trial_complete(0, [trial], trial)
    started, result, ended = text.getvalue().splitlines()
    assert started == "[0/1] window_length=8: started"
    assert "updates 5  reward 0.250  held-out 50.0%  tokens 5,000  tokens/s 1,234  left ?" in result
    assert ended.startswith("[0/1] window_length=8: ended")


def test_it_is_pickled_with_the_tuner() -> None:
    progress = pickle.loads(pickle.dumps(SweepProgress({"training_iteration": 10}, 2, Console(file=io.StringIO()))))
    assert progress.table([make_trial(8, Trial.RUNNING, RESULT)]).row_count == 1
