"""The planning benchmark on a small scale, with a real engine and real updates."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from tppo_rl.bench.plan import plan_errors, plan_figures, run_errors
from tppo_rl.bench.plan_clock import Clock
from tppo_rl.bench.plan_learner import work_of
from tppo_rl.bench.workloads import PROMPT, whole_episodes
from tppo_rl.plan.cost_files import read_costs
from tppo_rl.plan.costs import AffineEngineCost, Costs, forward_and_backward
from tppo_rl.plan.lengths import fixed
from tppo_rl.plan.predict import Workload, predict
from tppo_rl.plan.roofline import shape_of_model
from tppo_rl.plan.windows import PassWork

pytestmark = pytest.mark.integration

OPTIONS = {
    "model": "tppo_rl/arithmetic-chain",
    "slots": 4,
    "fitted_slots": (2, 6),
    "windows": (8,),
    "mean_length": 8,
    "cap": 32,
    "batch_tokens": 64,
    "batches": 1,
    "threads": 1,
    "repeats": 2,
}


def test_figures_have_their_names_and_costs_can_be_read_again(tmp_path: Path) -> None:
    figures = {figure.figure: figure for figure in plan_figures(**OPTIONS, costs_file=tmp_path / "costs.json")}
    cases = ("T-PPO async, window 8", "T-PPO sync, window 8", "PPO")
    names = {f"plan_{kind}, {part}, {case}" for kind in ("predicted", "measured", "error") for case in cases
             for part in ("total", "generation", "learner")}  # fmt: skip
    assert set(figures) == names | {"plan_error", "plan_core_fraction"}
    assert figures["plan_error"].repeats == len(cases)
    assert figures["plan_measured, total, PPO"].repeats == 2
    assert all(figure.low > 0 for figure in figures.values())
    engine = read_costs(tmp_path / "costs.json").engine
    # The fit's coefficients are 0 or more, and which of them are 0 is up to the machine's noise.
    assert engine.seconds(6, 48, 0) >= engine.seconds(0, 0, 0) >= 0
    assert engine.seconds(6, 48, 0) > 0


def test_what_is_predicted_may_not_be_fitted() -> None:
    with pytest.raises(ValueError, match="fitted_slots=4"):
        plan_figures(**(OPTIONS | {"fitted_slots": (2, 4)}), costs_file=None)


def test_errors_are_relative_to_the_median_and_totals_alone_count() -> None:
    figures = plan_errors(
        {"total, a": 1.1, "total, b": 0.8, "learner, a": 9.0},
        {"total, a": [0.5, 1.0, 7.0], "total, b": [1.0], "learner, a": [1.0]},
    )
    by_name = {figure.figure: figure for figure in figures}
    assert by_name["plan_error"].low == pytest.approx(0.1)
    assert by_name["plan_error"].high == pytest.approx(0.2)
    assert by_name["plan_error, learner, a"].median == pytest.approx(8.0)
    assert by_name["plan_measured, total, a"].high == pytest.approx(7e6)


def test_whole_runs_compare_with_predictions_of_their_windows() -> None:
    workload = Workload(fixed(16), slots=4, batch_tokens=64)
    costs = Costs(AffineEngineCost(1e-3), forward_and_backward(1e-6, 0.0), "a test")
    predictions = predict(workload, costs, shape_of_model("tppo_rl/arithmetic-chain"), [8])
    seconds = {(one.mode, one.window): [one.seconds_per_token / 2] for one in predictions}
    figures = {figure.figure: figure for figure in run_errors(predictions, seconds)}
    assert figures["plan_error"].median == pytest.approx(1.0)
    assert "plan_measured, total, run, T-PPO async, window 8" in figures
    with pytest.raises(ValueError, match="T-PPO async, window 9"):
        run_errors([replace(one, window=8) for one in predictions], {("async", 9): [1.0]})


def test_the_work_of_fragments_is_what_passes_process() -> None:
    work = work_of(whole_episodes(50, tokens=3 * 24, length=PROMPT + 24))
    assert work.values == PassWork(3.0, 3 * 40.0, 3 * 1600.0)
    assert work.policy == work.critic == PassWork(3.0, 3 * 39.0, 3 * 39.0**2)


def test_one_thread_is_measured_in_processor_time() -> None:
    for threads, at_most in ((1, 0.15), (2, 10.0)):
        clock = Clock(threads)
        with clock.timing() as timing:
            time.sleep(0.2)
        assert timing.seconds <= at_most
        assert timing.wall >= 0.2
        assert clock.share == pytest.approx(timing.seconds / timing.wall)
