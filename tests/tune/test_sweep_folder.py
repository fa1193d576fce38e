from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from synthetic_sweep import WINDOW_TASK, write_comparison, write_results, write_trial, write_window_sweep

from tppo_rl.core.errors import OptionError
from tppo_rl.tune.sweep_folder import differing_keys, read_sweep


def test_trials_of_a_grid_know_their_options_and_seeds(tmp_path: Path) -> None:
    trials = read_sweep(write_window_sweep(tmp_path, {32: [0.8, 0.9], 64: [0.9, 0.9]}))
    assert [(trial.window, trial.seed, trial.status) for trial in trials] == [
        (32, 0, "ended"),
        (32, 1, "ended"),
        (64, 0, "ended"),
        (64, 1, "ended"),
    ]
    assert differing_keys(trials) == ["window_length"]
    assert trials[0].option("run") == "TPPO"


def test_runs_of_a_comparison_know_their_experiment_and_nested_options(tmp_path: Path) -> None:
    experiments = {"a": {"env_config": {"task": "lcm"}}, "b": {"env_config": {"task": "gcd", "min_value": 2}}}
    trials = read_sweep(write_comparison(tmp_path, experiments, [0.8, 0.9]))
    assert [(trial.experiment, trial.seed) for trial in trials] == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    assert differing_keys(trials) == ["env_config.min_value", "env_config.task"]
    assert trials[0].option("env_config.min_value") == "(default)"
    assert trials[0].option("stop.training_iteration") == 8


def test_an_option_that_is_given_its_default_does_not_differ(tmp_path: Path) -> None:
    experiments = {"plain": {}, "said": {"boundary_value": "hold", "gamma": 1}, "other": {"lambda_": 0.9}}
    trials = read_sweep(write_comparison(tmp_path, experiments, [0.8]))
    assert differing_keys(trials) == ["lambda_"]
    assert [trial.option("lambda_") for trial in trials] == [0.9, 0.95, 0.95]


def test_the_curve_begins_before_training_and_has_training_seconds(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 3}, final=1.0, speed=100.0)
    (trial,) = read_sweep(tmp_path)
    curve = trial.curve
    assert curve.tokens.tolist() == [0, 2000, 4000, 6000, 8000]
    np.testing.assert_allclose(curve.seconds, [0, 20, 40, 60, 80])
    np.testing.assert_allclose(curve.accuracy, [0.2, 0.4, 0.6, 0.8, 1.0])


def test_the_summary_ends_the_curve_only_if_it_was_made_at_the_end(tmp_path: Path) -> None:
    """Tune's summary repeats the newest evaluation, which may be that of an earlier iteration."""
    folder = write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 0}, final=1.0, speed=100.0, evaluate_at_the_end=False)
    assert read_sweep(tmp_path)[0].curve.tokens.tolist() == [0, 1000, 3000, 5000, 7000]
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"heldout_accuracy_after": 0.97}))
    curve = read_sweep(tmp_path)[0].curve
    assert (curve.tokens[-1], curve.accuracy[-1]) == (8000, 0.97)


def test_an_iteration_that_was_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    folder = write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 0}, final=1.0, speed=100.0)
    lines = (folder / "result.json").read_text().splitlines(keepends=True)
    (folder / "result.json").write_text("".join([*lines[:6], *lines[4:]]))
    (trial,) = read_sweep(tmp_path)
    assert [result["training_iteration"] for result in trial.results] == list(range(1, 9))


def test_trials_that_did_not_end_are_not_compared(tmp_path: Path) -> None:
    write_window_sweep(tmp_path, {32: [0.8, 0.8, 0.8]})
    failed = write_trial(tmp_path, 3, WINDOW_TASK | {"seed": 3}, final=0.8, speed=100.0)
    (failed / "summary.json").unlink()
    (failed / "error.txt").write_text("out of memory")
    unfinished = write_trial(tmp_path, 4, WINDOW_TASK | {"seed": 4}, final=0.8, speed=100.0)
    (unfinished / "summary.json").unlink()
    early = write_trial(tmp_path, 5, WINDOW_TASK | {"seed": 5}, final=0.8, speed=300.0)
    keep_iterations(early, 3)
    write_results(tmp_path / "nobody-seed0", final=0.8, speed=100.0)
    (tmp_path / "report").mkdir()
    statuses = {trial.seed: trial.status for trial in read_sweep(tmp_path) if trial.options}
    assert statuses == {
        0: "ended", 1: "ended", 2: "ended", 3: "failed", 4: "unfinished", 5: "stopped early",
    }  # fmt: skip
    assert [trial.status for trial in read_sweep(tmp_path) if not trial.options] == ["unfinished"]


def test_a_run_with_few_tokens_in_the_same_time_was_not_stopped_early(tmp_path: Path) -> None:
    """A limit on time leaves tokens open."""
    write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 0}, final=0.8, speed=100.0)
    keep_iterations(write_trial(tmp_path, 1, WINDOW_TASK | {"seed": 1}, final=0.8, speed=100.0 * 3 / 8), 3)
    assert [trial.status for trial in read_sweep(tmp_path)] == ["ended", "ended"]


def keep_iterations(folder: Path, count: int) -> None:
    lines = (folder / "result.json").read_text().splitlines(keepends=True)
    (folder / "result.json").write_text("".join(lines[:count]))


def test_a_folder_without_trials_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"sweep='.*nothing': no such folder"):
        read_sweep(tmp_path / "nothing")
    with pytest.raises(OptionError, match="holds no trial that has ended"):
        read_sweep(tmp_path)
