from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from synthetic_sweep import WINDOW_TASK, write_comparison, write_trial, write_window_sweep

from tppo_rl.experiment.learning_curves import reached_after
from tppo_rl.tune.analysis import QUALITY, split_tasks
from tppo_rl.tune.measures import Limits, boundary_profile, measure
from tppo_rl.tune.sweep_folder import read_sweep


def test_measures_of_a_trial_worked_by_hand(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 0}, final=1.0, speed=100.0, window=40, step_error=0.25)
    (trial,) = read_sweep(tmp_path)
    values = measure(trial, Limits(tokens=4000, seconds=60, target=0.7))
    assert values == pytest.approx(
        {
            "tokens_per_second": 100.0,
            "slot_occupancy": 0.99,
            "tokens_per_update": 1000.0,
            "staleness": 1.5,
            "values_seconds": 0.1,
            "policy_seconds": 0.3,
            "critic_seconds": 0.2,
            "explained_variance": (0.5 + 0.6 + 0.7 + 0.8) / 4,
            "explained_variance_unfinished": (0.25 + 0.3 + 0.35 + 0.4) / 4,
            "accuracy_final": 1.0,
            "accuracy_equal_tokens": 0.6,
            "accuracy_equal_time": 0.8,
            "accuracy_mean": 0.4,
            "tokens_to_target": 5000.0,
            "seconds_to_target": 50.0,
            "boundary_held": 0.5,
            "boundary_bootstrap": 0.25,
            "boundary_step": 0.25,
        }
    )
    profile = boundary_profile([trial], "step", "position_bin")
    assert np.flatnonzero(~np.isnan(profile)).tolist() == [4, 8, 12, 16]


def test_iterations_without_a_metric_are_left_out(tmp_path: Path) -> None:
    """RLlib reports NaN for what an update did not log, and Tune writes null for it."""
    folder = write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 0}, final=1.0, speed=100.0)
    results = [json.loads(line) for line in (folder / "result.json").read_text().splitlines()]
    results[6]["critic"]["explained_variance"] = None
    results[7]["critic"]["explained_variance"] = math.nan
    (folder / "result.json").write_text("".join(json.dumps(result) + "\n" for result in results))
    (task,) = split_tasks(read_sweep(tmp_path))
    assert task.groups[0].estimate("explained_variance").mean == pytest.approx((0.5 + 0.6) / 2)


def test_a_target_that_is_never_reached_has_no_time(tmp_path: Path) -> None:
    write_trial(tmp_path, 0, WINDOW_TASK | {"seed": 0}, final=0.9, speed=100.0, window=40, step_error=0.25)
    (trial,) = read_sweep(tmp_path)
    times = {"tokens_to_target", "seconds_to_target"}
    assert not times & measure(trial, Limits(tokens=4000, seconds=60, target=0.95)).keys()
    reached = measure(trial, Limits(tokens=4000, seconds=60, target=0.3))
    assert 0.0 < reached["seconds_to_target"] < trial.curve.seconds[-1]
    at, values = np.array([0.0, 10.0, 20.0]), np.array([0.2, 0.4, 0.3])
    assert np.isnan(reached_after(values, at, 0.5))
    assert reached_after(values, at, 0.3) == pytest.approx(5.0)
    assert reached_after(values, at, 0.1) == 0.0


def test_window_lengths_are_an_axis_and_the_longest_is_the_reference(tmp_path: Path) -> None:
    (task,) = split_tasks(read_sweep(write_window_sweep(tmp_path, {16: [0.5] * 3, 320: [0.9] * 3, 64: [0.9] * 3})))
    assert task.axis == "window_length"
    assert [group.label for group in task.groups] == ["16", "64", "320"]
    assert task.reference("").label == "320"
    assert task.cap == 320
    assert task.inflections[""].window == 64
    losses = {row[2].label: row[3] for row in task.comparisons if row[0] == QUALITY}
    assert losses["16"].difference.mean == pytest.approx(-0.4)
    assert losses["16"].significant()


def test_whole_responses_stand_at_the_cap(tmp_path: Path) -> None:
    for index, window in enumerate((64, None)):
        write_trial(tmp_path, index, WINDOW_TASK | {"window_length": window, "seed": 0}, final=0.9, speed=100.0)
    (task,) = split_tasks(read_sweep(tmp_path))
    assert [group.x for group in task.groups] == [64.0, 320.0]


def test_another_option_beside_the_window_makes_series(tmp_path: Path) -> None:
    index = 0
    for estimator in ("hold", "bootstrap"):
        for window in (16, 64):
            for seed in range(3):
                options = WINDOW_TASK | {"window_length": window, "boundary_value": estimator, "seed": seed}
                write_trial(tmp_path, index, options, final=0.8, speed=100.0)
                index += 1
    (task,) = split_tasks(read_sweep(tmp_path))
    assert {name: [group.x for group in groups] for name, groups in task.series.items()} == {
        "hold": [16.0, 64.0],
        "bootstrap": [16.0, 64.0],
    }
    assert set(task.inflections) == {"hold", "bootstrap"}
    compared = [(reference, group.label) for what, reference, group, _ in task.comparisons if what == QUALITY]
    assert compared == [
        ("hold, window_length 64", "hold, window_length 16"),
        ("bootstrap, window_length 64", "bootstrap, window_length 16"),
        ("hold, window_length 16", "bootstrap, window_length 16"),
        ("hold, window_length 64", "bootstrap, window_length 64"),
    ]


def test_names_are_compared_with_the_defaults_within_each_task(tmp_path: Path) -> None:
    experiments = {
        f"{name}_{value}": {"env_config": {"task": name}, "boundary_value": value}
        for name in ("lcm", "gcd")
        for value in ("bootstrap", "hold", "tail_corrected")
    }
    tasks = split_tasks(read_sweep(write_comparison(tmp_path, experiments, [0.7, 0.8, 0.9])))
    assert sorted(task.title for task in tasks) == ["gcd", "lcm"]
    for task in tasks:
        assert task.axis is None
        assert [group.label for group in task.groups] == ["hold", "bootstrap", "tail_corrected"]
        assert task.reference("").label == "hold"
        compared = {(what, group.label) for what, _, group, _ in task.comparisons}
        assert {(QUALITY, "bootstrap"), (QUALITY, "tail_corrected"), ("boundary_held", "bootstrap")} <= compared
        assert all(reference == "hold" for _, reference, _, _ in task.comparisons)


def test_the_target_can_be_given(tmp_path: Path) -> None:
    sweep = write_window_sweep(tmp_path, {32: [1.0], 64: [0.6]})
    chosen, given = (split_tasks(read_sweep(sweep), target=target)[0] for target in (None, 0.5))
    assert chosen.limits.target == pytest.approx(0.2 + 0.8 * 0.8)
    assert given.limits.target == 0.5
    assert [len(group.by_seed("tokens_to_target")) for group in chosen.groups] == [1, 0]
    assert given.groups[1].by_seed("tokens_to_target") == {0: pytest.approx(6000.0)}
