from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.learning_curves import learning_curve
from tppo_rl.tune.baseline_search import search
from tppo_rl.tune.comparison import compare
from tppo_rl.tune.equal_budgets import BUDGETS


def evaluation(accuracy: float) -> dict[str, dict[str, float]]:
    values = {"accuracy": accuracy, "response_length_mean": 10 * accuracy, "standard_error": 0.0}
    return {"sampled": values, "greedy": values}


def write_run(folder: Path, accuracies: list[float]) -> None:
    """A run that has ended: one evaluation before, one every 100 tokens, one at the end."""
    folder.mkdir(parents=True)
    results = [
        {
            "training_iteration": index + 1,
            "tokens": {"sampled": 100 * (index + 1), "trained": 90 * (index + 1)},
            "time": {"iteration": 2.0, "update": 1.0},
        }
        | {"heldout_before": evaluation(accuracies[0]), "rollout": {}}
        | ({"evaluation": evaluation(accuracy)} if index < len(accuracies) - 2 else {})
        for index, accuracy in enumerate(accuracies[1:])
    ]
    (folder / "result.json").write_text("\n".join(map(json.dumps, results)) + "\n")
    summary = {
        "tokens": {"sampled": 100 * (len(accuracies) - 1)},
        "heldout_accuracy_before": accuracies[0],
        "heldout_accuracy_before_greedy": accuracies[0],
        "heldout_accuracy_after": accuracies[-1],
        "heldout_accuracy_after_greedy": accuracies[-1],
        "heldout_response_length_after": 10 * accuracies[-1],
        "slot_occupancy": 0.5,
        "wall_s": 60.0,
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def experiment(name: str, **config: object) -> Experiment:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", "evaluation_interval": 1} | config,
    }
    return make_experiment(name, body)


def test_runs_that_have_ended_are_drawn_and_not_repeated(tmp_path: Path) -> None:
    ends = {"first": [0.5, 0.7], "second": [0.9, 0.9]}
    for name, values in ends.items():
        for seed, last in enumerate(values):
            write_run(tmp_path / f"{name}-seed{seed}", [0.1, 0.3, last])
    text = io.StringIO()
    console = Console(file=text, width=250)
    folders = compare([experiment("first"), experiment("second")], tmp_path, seeds=range(2), console=console)
    assert [folder.name for folder in folders["first"]] == ["first-seed0", "first-seed1"]
    assert text.getvalue().count("has ended before") == 4
    assert "10.0 → 60.0 (50.0 … 70.0)" in text.getvalue()
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    with (tmp_path / "curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 3
    found = json.loads((tmp_path / "comparison.json").read_text())
    assert [one["budget"] for one in found["budgets"]] == [budget.name for budget in BUDGETS]
    tokens = found["budgets"][0]["experiments"]
    assert [row["accuracy"]["mean"] for row in tokens] == pytest.approx([0.6, 0.9])
    page = (tmp_path / "comparison.html").read_text()
    assert page.count("<table>") == 2 * len(BUDGETS) + 1
    assert page.count("data:image/png;base64,") == 2
    assert "At 200 sampled tokens, which all runs have spent (2 seeds each)" in page
    first = [row for row in rows if row["run"] == "first-seed1"]
    assert [(row["sampled_tokens"], row["accuracy"]) for row in first] == [("0", "0.1"), ("100", "0.3"), ("200", "0.7")]


def test_the_curve_ends_with_the_summary(tmp_path: Path) -> None:
    write_run(tmp_path / "run", [0.1, 0.3, 0.4, 0.8])
    assert [(point.sampled_tokens, point.accuracy) for point in learning_curve(tmp_path / "run")] == [
        (0, 0.1),
        (100, 0.3),
        (200, 0.4),
        (300, 0.8),
    ]


def test_two_experiments_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"^same: two experiments have this name"):
        compare([experiment("same"), experiment("same")], tmp_path, seeds=[0])


def test_a_grid_is_no_comparison(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="grid: a comparison has no grids"):
        compare([experiment("grid", window_length={"grid_search": [8, 16]})], tmp_path, seeds=[0])


def test_the_best_point_of_each_grid_is_compared(tmp_path: Path) -> None:
    curves = {
        "first": {8: [0.1, 0.3, 0.4], 16: [0.1, 0.5, 0.5]},
        "second": {1e-3: [0.1, 0.9, 0.9], 1e-4: [0.1, 0.2, 0.2]},
    }
    for name, of_points in curves.items():
        for number, values in enumerate(of_points.values()):
            write_run(tmp_path / f"{name}-search{number}", values)
        for seed in range(2):
            write_run(tmp_path / f"{name}-seed{seed}", [0.1, 0.3, 0.5])
    grids = [
        experiment("first", window_length={"grid_search": [8, 16]}),
        experiment("second", lr={"grid_search": [1e-3, 1e-4]}),
    ]
    text = io.StringIO()
    compare(grids, tmp_path, seeds=range(2), search_share=0.5, console=Console(file=text, width=250))
    found = json.loads((tmp_path / "comparison.json").read_text())["searches"]
    assert {name: one["best"] for name, one in found.items()} == {"first": 1, "second": 0}
    assert found["first"]["trials"][1]["options"] == {"window_length": 16}
    assert found["second"]["trials"][0]["accuracy"] == pytest.approx((0.5 + 0.9) / 2)
    page = (tmp_path / "comparison.html").read_text()
    assert "with 0.5 of the limits and seed 2" in page
    assert "compared; window_length at the edge of the grid" in page


def test_what_was_searched_is_compared_with_the_options_that_were_found(tmp_path: Path) -> None:
    ran = []

    def run(one: Experiment) -> Path:
        ran.append(one)
        lr = one.config["lr"]
        write_run(tmp_path / one.name, [0.1, 0.2, lr])
        return tmp_path / one.name

    given = experiment("one", lr={"grid_search": [0.3, 0.8, 0.5]}, critic_lr=1e-3)
    given = given.model_copy(update={"stop": {"num_env_steps_sampled_lifetime": 1000}})
    chosen, found = search(given, run, share=0.25, seed=7)
    assert [one.config["lr"] for one in ran] == [0.3, 0.8, 0.5]
    assert {one.config["seed"] for one in ran} == {7}
    assert all(one.stop == {"num_env_steps_sampled_lifetime": 250} for one in ran)
    assert (chosen.config["lr"], chosen.config["critic_lr"], chosen.stop) == (0.8, 1e-3, given.stop)
    assert "seed" not in chosen.config
    assert found.best == 1


@pytest.mark.parametrize(
    ("others", "share", "words"),
    [
        ({"lr": {"grid_search": [1e-3, 1e-4, 1e-5]}}, 0.5, r"grids of different sizes \(one 2, other 3 points\)"),
        ({}, 0.5, r"grids of different sizes \(one 2, other 1 points\)"),
        ({"lr": {"loguniform": [1e-5, 1e-3]}}, 0.5, "other: a search before a comparison takes grids alone"),
        ({}, None, "one: a comparison has no grids; .*--search 0.5"),
    ],
)
def test_searches_that_would_not_be_fair_are_refused(
    tmp_path: Path, others: dict[str, object], share: float | None, words: str
) -> None:
    both = [experiment("one", lr={"grid_search": [1e-3, 1e-4]}), experiment("other", **others)]
    with pytest.raises(OptionError, match=words):
        compare(both, tmp_path, seeds=[0], search_share=share)
    with pytest.raises(OptionError, match="no experiment has a grid_search"):
        compare([experiment("one")], tmp_path, seeds=[0], search_share=0.5)
    sampled = experiment("one", lr={"grid_search": [1e-3, 1e-4]}).model_copy(update={"num_samples": 2})
    with pytest.raises(OptionError, match="takes grids alone"):
        compare([sampled], tmp_path, seeds=[0], search_share=0.5)


def test_without_evaluations_there_is_nothing_to_compare(tmp_path: Path) -> None:
    """Refused before anything is trained, rather than when the table is made of what no run has."""
    with pytest.raises(OptionError, match=r"^blind\.evaluation_interval=None"):
        compare([experiment("blind", evaluation_interval=None)], tmp_path, seeds=[0])


def test_a_run_of_other_options_is_not_taken_for_this_one(tmp_path: Path) -> None:
    write_run(tmp_path / "first-seed0", [0.1, 0.3, 0.5])
    (tmp_path / "first-seed0" / "options.json").write_text('{"run": "TPPO"}')
    with pytest.raises(OptionError, match=r"first-seed0: .* holds a run with other options"):
        compare([experiment("first")], tmp_path, seeds=[0])
