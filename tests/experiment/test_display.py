"""What a person sees of a run: panel, lines, table, figure."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tppo_rl.algorithms.peak_memory import LEARNER_GPU
from tppo_rl.config.options import Options
from tppo_rl.core.gpus import parse_gpus
from tppo_rl.core.result_keys import lookup
from tppo_rl.core.waiting import stage, watched_by
from tppo_rl.experiment.display import RunDisplay, sizes_table
from tppo_rl.experiment.learning_curves import evaluation_points
from tppo_rl.experiment.plots import plot_runs
from tppo_rl.experiment.result_log import ResultLog
from tppo_rl.experiment.summary import beside_plan, read_summary, summarize, summary_table, write_summary
from tppo_rl.experiment.time_left import Pace
from tppo_rl.plan.memory import memory_of
from tppo_rl.plan.placement import place


def evaluation(accuracy: float) -> dict[str, Any]:
    values = {
        "accuracy": accuracy,
        "standard_error": 0.02,
        "response_length_mean": 20.0,
        "truncated_fraction": 0.0,
        "n": 512,
    }
    return {"sampled": values, "greedy": values}


def result(iteration: int, *, evaluated: bool = False) -> dict[str, Any]:
    return {
        "training_iteration": iteration,
        "num_env_steps_sampled_lifetime": 100 * iteration,
        "rollout": {"return_mean": None, "response_length_mean": 12.5, "slot_occupancy": 0.987},
        "tokens": {
            "sampled": 100 * iteration, "trained": 90 * iteration, "queued": 10 * iteration, "in_flight": 0,
            "dropped": 0, "dropped_by_reason": {}, "sampled_per_second": 1234.5,
        },
        "staleness": {"mean": 1.25, "max": 2.0},
        "heldout_before": evaluation(0.25),
        "heldout_latest": evaluation(0.5),
        "run": {
            "slot_occupancy_lifetime": 0.98, "wall_s": 12.0, "seconds": {"update": 3.0}, "largest_staleness": 2,
            "largest_fresh_log_prob_diff": 1e-6, "largest_ratio_deviation": 0.1,
        },
        "mode": "async",
        "seed": 7,
    } | ({"evaluation": evaluation(0.5)} if evaluated else {})  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_panel_and_lines_show_the_same_figures(terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=200)
    clock = iter([0.0, 5.0, 10.0])
    pace = Pace({"num_env_steps_sampled_lifetime": 1000}, clock=lambda: next(clock))
    with RunDisplay(console, "small", pace) as display, watched_by(display):
        with stage("sampling", part="update"):
            pass
        display.show(result(1))
        display.show(result(2))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    for figure in ("12.5", "50.0%", "200", "1,23", "0.987", "1.25 (max 2)", "0:45", "0:40"):
        assert figure in text, figure


def test_sizes_are_in_one_vocabulary() -> None:
    console = Console(file=io.StringIO(), width=120)
    console.print(sizes_table(Options.of(num_learners=2, train_batch_size_per_learner=500)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "1,000" in text
    assert all(
        word in text for word in ("slots", "window_length", "train batch", "minibatch_size", "micro_batch_tokens")
    )


def test_summary_table_and_figure_follow_from_the_results(tmp_path: Path) -> None:
    log = ResultLog(tmp_path)
    results = [result(1), result(2, evaluated=True), result(3)]
    for each in results:
        log.append(each)
    summary = summarize(results[-1], evaluation(0.75))
    write_summary(tmp_path, summary)
    assert read_summary(tmp_path) == summary
    assert summary["heldout_accuracy_before"] == 0.25
    assert summary["heldout_accuracy_after_greedy"] == 0.75
    assert summary["tokens"] == {"sampled": 300, "trained": 270, "queued": 30, "in_flight": 0, "dropped": 0}
    keys = {
        "heldout_accuracy_before",
        "heldout_accuracy_after",
        "heldout_n",
        "tokens",
        "slot_occupancy",
        "wall_s",
        "seed",
        "mode",
    }
    assert keys <= summary.keys()
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(summary, tmp_path))
    assert "25.0 → 75.0 ± 2.0%" in console.file.getvalue()  # type: ignore[attr-defined]
    assert [count for count, _ in evaluation_points(results)] == [0, 200]
    plot_runs([tmp_path, tmp_path], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_a_run_without_evaluation_says_so(tmp_path: Path) -> None:
    last = result(1) | {"heldout_before": {}, "heldout_latest": {}}
    console = Console(file=io.StringIO(), width=120)
    console.print(summary_table(summarize(last, {}), tmp_path))
    assert "not evaluated" in console.file.getvalue()  # type: ignore[attr-defined]


def test_lookup_follows_paths() -> None:
    assert lookup({"a": {"b": 1}}, "a/b") == 1
    assert lookup({"a": {"b": 1}}, "a/c") is None
    assert lookup({"a": 1}, "a/b") is None


def test_the_peak_of_a_learners_gpu_stands_beside_the_plan() -> None:
    options = Options.of(policy_model="tppo_rl/arithmetic-chain", num_learners=1)
    memory = memory_of(options)
    given = {"policy_model": "tppo_rl/arithmetic-chain", "placement": "colocated"}
    placed = place(given, {}, parse_gpus("h100"))
    peaks = {"driver": 7, "learner": 8, LEARNER_GPU: 9}
    found = beside_plan(memory, peaks, placed)
    assert found[LEARNER_GPU] == {"planned": placed.needs.peak, "peak": 9}
    assert found["learner"] == {"planned": memory.of("learner"), "peak": 8}
    assert set(found) == set(peaks), "an env-runner that did not answer is left out"
    # On a CPU, and without a placement, there is nothing to say of a GPU.
    assert LEARNER_GPU not in beside_plan(memory, {"driver": 7}, placed)
    assert LEARNER_GPU not in beside_plan(memory, peaks)
