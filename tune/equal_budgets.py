"""Experiments at equal budgets: what accuracy a run has for what it has spent, with intervals over seeds.

    result.json of each run ─▶ spending at each evaluation ─▶ accuracy at the budget that all runs have spent
                                                           ─▶ mean accuracy over the curve up to it
                                                           ─▶ what it took to reach an accuracy

There are five budgets, because each flatters another method: a method that waits has few tokens and much time, one that trains small
batches has many updates. Evaluations, and what is before the first iteration, count in none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.experiment.learning_curves import known, reached_after
from tppo_rl.experiment.result_log import read_results
from tppo_rl.experiment.summary import read_summary
from tppo_rl.tune.statistics import Comparison, Estimate, compare_with, mean_with_interval

TARGETS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Accuracies whose cost is taken."""
_SHARES = (0.0, 1.0)


@dataclass(frozen=True)
class Budget:
    """Something that runs spend."""

    name: str
    title: str
    unit: str
    spent: Callable[[Mapping[str, Any]], float]
    """By one iteration, from its result; counts of the whole run are made differences."""
    is_total: bool = False
    """Whether `spent` gives the count of the run up to the iteration."""


BUDGETS = (
    Budget("sampled_tokens", "sampled tokens", "tokens", lambda result: result["tokens"]["sampled"], is_total=True),
    Budget("trained_tokens", "trained tokens", "tokens", lambda result: result["tokens"]["trained"], is_total=True),
    Budget("updates", "updates", "updates", lambda result: result["training_iteration"], is_total=True),
    Budget("wall_seconds", "wall time", "s", lambda result: result["time"]["iteration"]),
    Budget("learner_seconds", "learner time", "s", lambda result: result["time"]["update"]),
)


@dataclass(frozen=True)
class Curve:
    """Evaluations of one run."""

    accuracy: np.ndarray
    """Shares, [N]: held-out, at the training temperature."""
    spent: dict[str, np.ndarray]
    """By budget, [N], rising from 0 on."""

    def at(self, budget: str, limit: float) -> float:
        """Accuracy when so much was spent; between evaluations it is taken as linear."""
        return float(np.interp(limit, self.spent[budget], self.accuracy))

    def mean_up_to(self, budget: str, limit: float) -> float:
        """Mean accuracy over the curve while up to so much was spent."""
        spent = self.spent[budget]
        inside = spent < limit
        places = np.append(spent[inside], limit)
        length = places[-1] - places[0]
        return float(np.trapezoid(np.interp(places, spent, self.accuracy), places) / length) if length else float("nan")

    def cost_of(self, budget: str, target: float) -> float:
        """What was spent when accuracy first reached a share; nan where it never did."""
        return reached_after(self.accuracy, self.spent[budget], target)


def read_curve(folder: Path) -> Curve:
    """Reads the evaluations of a run that has ended, and what it had spent at each."""
    results = read_results(folder)
    totals = {budget.name: _total(results, budget) for budget in BUDGETS}
    rows = [index + 1 for index in range(len(results)) if "evaluation" in results[index]]
    accuracy = [_accuracy(results[row - 1]["evaluation"]) for row in rows]
    if not rows or rows[-1] < len(results):
        rows.append(len(results))
        accuracy.append(known(read_summary(folder)["heldout_accuracy_after"]))
    if before := results[0]["heldout_before"]:
        rows, accuracy = [0, *rows], [_accuracy(before), *accuracy]
    spent = {name: np.concatenate([[0.0], total])[rows] for name, total in totals.items()}
    return Curve(np.array(accuracy, np.float64), spent)


def _accuracy(evaluation: Mapping[str, Any]) -> float:
    return known(evaluation["sampled"].get("accuracy"))


def _total(results: Sequence[Mapping[str, Any]], budget: Budget) -> np.ndarray:
    values = np.array([float(budget.spent(result)) for result in results])
    return values if budget.is_total else np.cumsum(values)


@dataclass(frozen=True)
class AtBudget:
    """An experiment at one budget."""

    experiment: str
    accuracy: Estimate
    """When the budget is spent."""
    mean_accuracy: Estimate
    """Over the curve up to it."""
    against_first: Comparison | None
    """Mean accuracy against that of the first experiment with the same seeds; None for the first."""


@dataclass(frozen=True)
class EqualBudget:
    """All experiments where each has spent the same."""

    budget: Budget
    limit: float
    """The least that a run has spent at its last evaluation."""
    rows: list[AtBudget]
    costs: dict[str, dict[float, list[float]]]
    """By experiment and accuracy, for each run; nan where it was never reached."""


def at_equal_budgets(curves: Mapping[str, Sequence[Curve]]) -> list[EqualBudget]:
    """Compares experiments at each budget.

    Args:
        curves: By experiment, in the order of the seeds, which all have.
    """
    return [_at_budget(curves, budget) for budget in BUDGETS]


def _at_budget(curves: Mapping[str, Sequence[Curve]], budget: Budget) -> EqualBudget:
    limit = float(min(curve.spent[budget.name][-1] for runs in curves.values() for curve in runs))
    means = {
        name: {seed: curve.mean_up_to(budget.name, limit) for seed, curve in enumerate(runs)}
        for name, runs in curves.items()
    }
    first, *others = curves
    against = dict(zip(others, compare_with(means[first], [means[name] for name in others], "two-sided"), strict=True))
    rows = [
        AtBudget(
            name,
            mean_with_interval([curve.at(budget.name, limit) for curve in runs], bounds=_SHARES),
            mean_with_interval([*means[name].values()], bounds=_SHARES),
            against.get(name),
        )
        for name, runs in curves.items()
    ]
    costs = {
        name: {target: [curve.cost_of(budget.name, target) for curve in runs] for target in TARGETS}
        for name, runs in curves.items()
    }
    return EqualBudget(budget, limit, rows, costs)


def as_json(results: Sequence[EqualBudget]) -> list[dict[str, Any]]:
    """Returns the comparisons as JSON has them; what is not known is null."""
    return [
        {
            "budget": result.budget.name,
            "unit": result.budget.unit,
            "limit": result.limit,
            "experiments": [plain(row) for row in result.rows],
            "cost_of_accuracy": {
                name: {f"{target:g}": plain(values) for target, values in of_target.items()}
                for name, of_target in result.costs.items()
            },
        }
        for result in results
    ]


def plain(value: Any) -> Any:
    """Returns a value as JSON has it: dataclasses as objects, what is not a number as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
