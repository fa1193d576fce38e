"""The search before a comparison: every experiment has a grid of its own, all of one size, and its best point is compared.

A method that was tuned beats one that was not. So each experiment gets as many runs, with one seed that the comparison does not use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.config.run_files import Experiment
from tppo_rl.config.search_space import axes
from tppo_rl.core.errors import OptionError
from tppo_rl.tune.equal_budgets import read_curve
from tppo_rl.tune.report_page import PageTable


@dataclass(frozen=True)
class Trial:
    """A point of an experiment's grid that was run."""

    options: dict[str, Any]
    """Values of the grid's options, by their places joined with dots."""
    accuracy: float
    """Held-out accuracy, a share: mean over the run's sampled tokens."""


@dataclass(frozen=True)
class Search:
    """The search of one experiment."""

    trials: Sequence[Trial]
    best: int
    """Index of the best trial, the first one of equals."""
    seed: int
    """Of all its runs."""
    share: float
    """Of the experiment's limits, for each run."""

    @property
    def said_of_best(self) -> str:
        """What the table says of the best trial: one at the edge of its grid may have a better one beyond."""
        chosen = self.trials[self.best].options
        numbers = {key: value for key, value in chosen.items() if isinstance(value, int | float)}
        at_edge = [key for key, value in numbers.items() if value in self._ends(key)]
        return f"compared; {', '.join(at_edge)} at the edge of the grid" if at_edge else "compared"

    def _ends(self, key: str) -> tuple[Any, Any]:
        values = [trial.options[key] for trial in self.trials]
        return min(values), max(values)


def check_search(experiments: Sequence[Experiment], share: float | None) -> None:
    """Checks that experiments can be compared, after a search or without one.

    Args:
        experiments: To be compared.
        share: Of an experiment's limits, for each run of its search; None: no search.

    Raises:
        OptionError: an experiment has a grid and there is no search, is a sweep of another kind, has a grid of another size than
            others, or none has a grid to be searched.
    """
    sizes = {experiment.name: len(list(experiment.points())) for experiment in experiments}
    for experiment in experiments:
        if share is None and experiment.is_sweep:
            raise OptionError(
                f"{experiment.name}: a comparison has no grids; give each value an experiment of its own, or --search 0.5 to take the "
                "best point of each experiment's grid, found in runs of half the length"
            )
        without_grid = {key: None if _has_axes(key, value) else value for key, value in experiment.config.items()}
        is_other_sweep = experiment.model_copy(update={"config": without_grid}).is_sweep
        if is_other_sweep or not all(axis.is_grid for axis in axes(experiment.options())):
            raise OptionError(
                f"{experiment.name}: a search before a comparison takes grids alone; give the values of an option as a grid_search, and "
                "leave out num_samples, seeds and tune_config"
            )
    if share is not None and set(sizes.values()) == {1}:
        raise OptionError(
            f"--search={share:g}: no experiment has a grid_search; give each one some points, or leave --search out"
        )
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in sizes.items())
        raise OptionError(
            f"--search={share:g}: grids of different sizes ({told} points); give every experiment as many, for a method that is "
            "searched longer looks better"
        )


def _has_axes(key: str, value: Any) -> bool:
    return any(True for _ in axes({key: value}))


def search(
    experiment: Experiment, run: Callable[[Experiment], Path], *, share: float, seed: int
) -> tuple[Experiment, Search]:
    """Runs every point of an experiment's grid and returns the experiment at its best one.

    Args:
        experiment: Checked by `check_search`.
        run: Runs an experiment without a grid and returns its folder.
        share: Of the experiment's limits.
        seed: Of the runs.
    """
    points = list(experiment.points())
    stop = {key: type(value)(value * share) for key, value in experiment.stop.items()}
    trials = []
    for number, point in enumerate(points):
        of_point = {"name": f"{experiment.name}-search{number}", "config": point | {"seed": seed}, "stop": stop}
        curve = read_curve(run(experiment.model_copy(update=of_point)))
        accuracy = _mean_over(curve.accuracy, curve.spent["sampled_tokens"])
        trials.append(Trial(dict(_values(experiment, point)), accuracy))
    best = int(np.argmax([trial.accuracy for trial in trials]))
    return experiment.model_copy(update={"config": points[best]}), Search(trials, best, seed, share)


def _values(experiment: Experiment, point: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for axis in axes(experiment.options()):
        value: Any = point
        for key in axis.path:
            value = value[key]
        yield ".".join(axis.path), value


def _mean_over(accuracy: np.ndarray, spent: np.ndarray) -> float:
    return float(np.trapezoid(accuracy, spent) / (spent[-1] - spent[0]))


def search_table(searches: Mapping[str, Search]) -> PageTable:
    """All points of all searches, with the best of each marked."""
    first = next(iter(searches.values()))
    rows = [
        [
            name,
            ", ".join(f"{key} {value}" for key, value in trial.options.items()),
            f"{100 * trial.accuracy:.1f}",
            found.said_of_best if number == found.best else "",
        ]
        for name, found in searches.items()
        for number, trial in enumerate(found.trials)
    ]
    return PageTable(
        ["experiment", "point", "accuracy, %", ""],
        rows,
        f"Search before the comparison: mean accuracy over the sampled tokens of one run each, with {first.share:g} of the limits and seed {first.seed}.",
        frozenset({0, 1, 3}),
    )
