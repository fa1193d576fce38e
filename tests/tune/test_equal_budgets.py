"""Experiments at equal budgets, and sigmoids through their curves, against values known beforehand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tppo_rl.tune.compute_curve import Sigmoid, fit_sigmoid
from tppo_rl.tune.equal_budgets import BUDGETS, Curve, as_json, at_equal_budgets, read_curve


def curve(accuracy: list[float], spent: list[float], **other: list[float]) -> Curve:
    budgets = {budget.name: np.array(other.get(budget.name, spent), float) for budget in BUDGETS}
    return Curve(np.array(accuracy), budgets)


def result(iteration: int, sampled: int, trained: int, seconds: float, accuracy: float | None) -> dict[str, Any]:
    evaluation = {} if accuracy is None else {"evaluation": {"sampled": {"accuracy": accuracy}}}
    return {
        "training_iteration": iteration,
        "tokens": {"sampled": sampled, "trained": trained},
        "time": {"iteration": seconds, "update": seconds / 2},
        "heldout_before": {"sampled": {"accuracy": 0.1}},
        **evaluation,
    }


def test_what_was_spent_is_read_at_each_evaluation(tmp_path: Path) -> None:
    results = [result(1, 100, 80, 3.0, None), result(2, 220, 190, 5.0, 0.4), result(3, 220, 200, 1.0, 0.5)]
    (tmp_path / "result.json").write_text("\n".join(map(json.dumps, results)) + "\n")
    found = read_curve(tmp_path)
    np.testing.assert_array_equal(found.accuracy, [0.1, 0.4, 0.5])
    results.append(result(4, 300, 280, 2.0, None))
    (tmp_path / "result.json").write_text("\n".join(map(json.dumps, results)) + "\n")
    (tmp_path / "summary.json").write_text('{"heldout_accuracy_after": 0.7}')
    longer = read_curve(tmp_path)
    assert (longer.accuracy[-1], longer.spent["sampled_tokens"][-1]) == (0.7, 300)
    expected = {
        "sampled_tokens": [0, 220, 220],
        "trained_tokens": [0, 190, 200],
        "updates": [0, 2, 3],
        "wall_seconds": [0, 8, 9],
        "learner_seconds": [0, 4, 4.5],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(found.spent[name], values)


def test_runs_are_compared_where_all_of_them_have_come() -> None:
    slow = [curve([0.0, 0.5, 0.5 + seed / 100], [0, 10, 20]) for seed in range(3)]
    fast = [curve([0.0, 0.8, 0.9 + seed / 100], [0, 10, 40]) for seed in range(3)]
    for comparison in at_equal_budgets({"slow": slow, "fast": fast}):
        assert comparison.limit == 20
        first, second = comparison.rows
        assert first.accuracy.mean == pytest.approx(0.51)
        assert first.against_first is None
        # From 0.8 at 10 to 0.91 at 40, a third of the way.
        assert second.accuracy.mean == pytest.approx(0.8 + 0.11 / 3)
        # Trapezoids: (0 + 0.8) / 2 and (0.8 + 0.8367) / 2.
        assert second.mean_accuracy.mean == pytest.approx((0.4 + (1.6 + 0.11 / 3) / 2) / 2)
        assert second.against_first is not None
        assert second.against_first.difference.mean == pytest.approx(
            second.mean_accuracy.mean - first.mean_accuracy.mean
        )
        assert second.against_first.p < 0.001
        assert comparison.costs["fast"][0.8] == [10, 10, 10]
        assert comparison.costs["fast"][0.5] == [pytest.approx(6.25)] * 3
        assert np.isnan(comparison.costs["slow"][0.9]).all()


def test_one_budget_may_favor_what_another_does_not() -> None:
    waits = [curve([0, 0.6], [0, 1], wall_seconds=[0, 100], sampled_tokens=[0, 10])]
    busy = [curve([0, 0.6], [0, 1], wall_seconds=[0, 50], sampled_tokens=[0, 20])]
    by_name = {one.budget.name: one for one in at_equal_budgets({"waits": waits, "busy": busy})}
    time, tokens = by_name["wall_seconds"], by_name["sampled_tokens"]
    assert [row.accuracy.mean for row in time.rows] == pytest.approx([0.3, 0.6])
    assert [row.accuracy.mean for row in tokens.rows] == pytest.approx([0.6, 0.3])
    # One seed has no interval and no test.
    written = json.loads(json.dumps(as_json([time]), allow_nan=False))
    assert written[0]["experiments"][1]["against_first"]["p"] is None
    assert written[0]["cost_of_accuracy"]["busy"]["0.5"] == [pytest.approx(50 * 0.5 / 0.6)]


def test_a_sigmoid_is_found_again_with_its_interval() -> None:
    truth = Sigmoid(0.9, 5e3, 1.8, (0, 0, 0), (0, 0, 0))
    compute = np.array([0, 1e3, 2e3, 4e3, 8e3, 1.6e4, 3.2e4])
    generator = np.random.default_rng(3)
    start = 0.2
    exact = np.append(start, truth.at(compute[1:], start))
    curves = [(compute, exact + np.append(0, generator.normal(0, 0.01, 6))) for _ in range(5)]
    found = fit_sigmoid(curves)
    assert found is not None
    assert found.asymptote == pytest.approx(0.9, abs=0.02)
    assert found.midpoint == pytest.approx(5e3, rel=0.1)
    assert found.steepness == pytest.approx(1.8, rel=0.15)
    assert found.low[0] <= 0.9 <= found.high[0]
    assert found.low[1] <= 5e3 <= found.high[1]
    assert found.high[0] - found.low[0] < 0.05


def test_no_sigmoid_without_enough_evaluations() -> None:
    assert fit_sigmoid([(np.array([0.0, 1.0, 2.0]), np.array([0.1, 0.2, 0.3]))]) is None
    few = fit_sigmoid([(np.arange(6.0), np.array([0.1, 0.2, 0.3, 0.4, 0.45, 0.5]))] * 2)
    assert few is not None
    assert np.isnan(few.low).all()
