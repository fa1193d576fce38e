"""Tables, figure and page of experiments at equal budgets."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, StrictUndefined
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from rich.table import Table

from tppo_rl.tune.compute_curve import Sigmoid
from tppo_rl.tune.equal_budgets import BUDGETS, Budget, Curve, EqualBudget
from tppo_rl.tune.report_page import PageTable
from tppo_rl.tune.statistics import Estimate, mean_with_interval

_TEMPLATE = "comparison.html.jinja"
_GRID_POINTS = 60


def equal_budget_table(result: EqualBudget) -> PageTable:
    """What each experiment has reached where all have spent the same."""
    rows = []
    for row in result.rows:
        against = row.against_first
        rows.append(
            [
                row.experiment,
                _share(row.accuracy),
                _share(row.mean_accuracy),
                "" if against is None else _share(against.difference, sign=True),
                "" if against is None or np.isnan(against.p) else f"{against.p:.3g}",
            ]
        )
    return PageTable(
        [
            "experiment",
            "accuracy then, %",
            "mean over the curve, %",
            f"points against {result.rows[0].experiment}",
            "p",
        ],
        rows,
        f"At {_spent(result)}, which all runs have spent{_seeds(result)}. In brackets 95 % over seeds, and p of a paired t-test, from three "
        "seeds on.",
        frozenset({0}),
    )


def cost_table(result: EqualBudget) -> PageTable:
    """What each accuracy took: the median over the runs that reached it, and how many did."""
    shown = [target for target in next(iter(result.costs.values())) if _anyone_reached(result, target)]
    rows = [[name, *(_median(of_target[target]) for target in shown)] for name, of_target in result.costs.items()]
    return PageTable(
        ["experiment", *(f"{100 * target:.0f} %" for target in shown)],
        rows,
        f"{result.budget.title.capitalize()}{', s,' if result.budget.unit == 's' else ''} to an accuracy: median of the runs that reached it, smallest and largest, "
        "and how many of the runs did.",
        frozenset({0}),
    )


def sigmoid_table(fits: Mapping[str, Sigmoid | None]) -> PageTable:
    """Asymptote, midpoint and steepness of the fits."""
    rows = []
    for name, fit in fits.items():
        if fit is None:
            rows.append([name, "too few evaluations", "", ""])
            continue
        bounds = list(zip(fit.low, fit.high, strict=True))
        rows.append(
            [
                name,
                _interval(100 * fit.asymptote, *(100 * bound for bound in bounds[0])),
                _interval(fit.midpoint, *bounds[1], digits=0),
                _interval(fit.steepness, *bounds[2], digits=2),
            ]
        )
    return PageTable(
        ["experiment", "asymptote, %", "midpoint, tokens", "steepness"],
        rows,
        "Accuracy over sampled tokens as a sigmoid: where it ends, at how many tokens half of the gain is there, how steep it is. In brackets "
        "95 % of fits to resampled seeds. An asymptote that the curves do not come near is a guess.",
        frozenset({0}),
    )


def terminal_table(table: PageTable) -> Table:
    """The table for a terminal."""
    shown = Table(*table.columns)
    for row in table.rows:
        shown.add_row(*row)
    return shown


def plot_budgets(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draws accuracy over each budget into a PNG file: the mean over runs, and its 95 % interval from three runs on."""
    _plot(curves, BUDGETS, path, width=3.2, height=3.2)


def plot_over_time(curves: Mapping[str, Sequence[Curve]], path: Path) -> None:
    """Draws accuracy over wall time alone, as `plot_budgets` does."""
    _plot(curves, [budget for budget in BUDGETS if budget.name == "wall_seconds"], path, width=6.4, height=3.6)


def _plot(
    curves: Mapping[str, Sequence[Curve]], budgets: Sequence[Budget], path: Path, *, width: float, height: float
) -> None:
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(width * len(budgets), height), layout="constrained")
        panels = figure.subplots(1, len(budgets), sharey=True, squeeze=False)[0]
        for axes, budget in zip(panels, budgets, strict=True):
            _plot_budget(axes, curves, budget)
        panels[0].set(ylabel="held-out accuracy, sampled", ylim=(0, 1))
        panels[0].legend(frameon=False, fontsize=7)
        figure.savefig(path, dpi=150)


def _plot_budget(axes: Axes, curves: Mapping[str, Sequence[Curve]], budget: Budget) -> None:
    for index, (name, runs) in enumerate(curves.items()):
        grid = np.linspace(0, min(run.spent[budget.name][-1] for run in runs), _GRID_POINTS)
        values = np.array([np.interp(grid, run.spent[budget.name], run.accuracy) for run in runs])
        estimates = [mean_with_interval(column, bounds=(0.0, 1.0)) for column in values.T]
        axes.plot(grid, [one.mean for one in estimates], color=f"C{index}", label=name, linewidth=1.3)
        low, high = ([getattr(one, side) for one in estimates] for side in ("low", "high"))
        axes.fill_between(grid, low, high, color=f"C{index}", alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{budget.title}, {budget.unit}" if budget.unit == "s" else budget.title)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def comparison_page(title: str, tables: Sequence[PageTable], images: Sequence[Path]) -> str:
    """One HTML page that refers to nothing outside of it."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(files("tppo_rl.tune").joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    pictures = [(path.name, base64.b64encode(path.read_bytes()).decode("ascii")) for path in images]
    return template.render(title=title, tables=tables, images=pictures) + "\n"


def _spent(result: EqualBudget) -> str:
    """Such as "20,000 sampled tokens", or "14 s of wall time"."""
    unit = "s of " if result.budget.unit == "s" else ""
    return f"{_number(result.limit)} {unit}{result.budget.title}"


def _seeds(result: EqualBudget) -> str:
    numbers = {row.accuracy.n for row in result.rows}
    return f" ({', '.join(map(str, sorted(numbers)))} seed{'s' if max(numbers) > 1 else ''} each)"


def _anyone_reached(result: EqualBudget, target: float) -> bool:
    return any(not np.isnan(value) for costs in result.costs.values() for value in costs[target])


def _median(values: Sequence[float]) -> str:
    reached = [value for value in values if not np.isnan(value)]
    if not reached:
        return f"none of {len(values)}"
    text = _number(float(np.median(reached)))
    spread = f" ({_number(min(reached))} … {_number(max(reached))})" if len(reached) > 1 else ""
    return f"{text}{spread}" + ("" if len(reached) == len(values) else f", {len(reached)} of {len(values)}")


def _share(estimate: Estimate, *, sign: bool = False) -> str:
    return _interval(100 * estimate.mean, 100 * estimate.low, 100 * estimate.high, sign=sign)


def _interval(mean: float, low: float, high: float, *, digits: int = 1, sign: bool = False) -> str:
    plus = "+" if sign else ""
    text = f"{mean:{plus},.{digits}f}"
    return text if np.isnan(low) else f"{text} [{low:{plus},.{digits}f}, {high:{plus},.{digits}f}]"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
