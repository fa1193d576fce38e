"""Figures of a report, as PNG bytes: quantities along the axis, learning curves, update times, boundary errors.

Every figure is one panel of one size, so that its letters can be read on a phone.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator
from PIL import Image

from tppo_rl.observability.boundary_errors import POSITION_BINS
from tppo_rl.tune.analysis import WINDOW, Group, Task
from tppo_rl.tune.measures import ANY, BY_NAME, LEAST_IN_CELL, SHARES, boundary_profile
from tppo_rl.tune.statistics import mean_with_interval
from tppo_rl.tune.sweep_folder import Trial, metric

_SIZE = (4.8, 3.5)
_DPI = 150
_COLORS = 96
_STYLE = {"font.size": 10.5, "axes.spines.top": False, "axes.spines.right": False, "savefig.facecolor": "white"}
_GRID_POINTS = 60
_BINS_OF_TOKENS = 12
_MOST_TICKS = 7
_MOST_NUMBERS = 9
"""Columns up to which the cells of a heat map show their numbers."""


@dataclass(frozen=True)
class ReportFigure:
    """One PNG file of a report."""

    name: str
    """Of the file, without its ending."""
    title: str
    caption: str
    png: bytes


def draw_task(task: Task) -> list[ReportFigure]:
    """All figures that the trials of a task have data for."""
    drawn = [*_along_the_axis(task), *_curves(task), _update_times(task), *_critic_curves(task), *_heat_maps(task)]
    return [figure for figure in drawn if figure is not None]


# Quantities along the axis


def _along_the_axis(task: Task) -> Iterator[ReportFigure]:
    if len(task.groups) < 2:
        return
    for name in ("tokens_per_second", "seconds_to_target", "accuracy_equal_tokens", "accuracy_equal_time"):
        if not any(group.by_seed(name) for group in task.groups):
            continue
        measure = BY_NAME[name]
        with _panel() as (figure, axes):
            _draw_measure(axes, task, name)
            png = _png(figure)
        title = measure.title + (f" {task.limits.target:.2f}" if name == "seconds_to_target" else "")
        caption = f"{measure.definition}; {_AXIS_CAPTION}."
        if name == "accuracy_equal_tokens":
            caption += f" All at {task.limits.tokens:,.0f} sampled tokens."
        if name == "accuracy_equal_time":
            caption += f" All at {task.limits.seconds:,.0f} s of training."
        if name == "seconds_to_target":
            caption += _reached(task)
        yield ReportFigure(name, _capital(title), _capital(caption), png)


_AXIS_CAPTION = "dots are runs, the line or bar their mean, the band or whisker its 95 % interval"


def _reached(task: Task) -> str:
    missing = [
        f"{group.label}: {len(group.by_seed('seconds_to_target'))} of {len(group.trials)} runs reached it"
        for group in task.groups
        if len(group.by_seed("seconds_to_target")) < len(group.trials)
    ]
    return f" {'; '.join(missing)}." if missing else ""


def _x(group: Group) -> float:
    assert group.x is not None, "a task with an axis has a place for each of its groups"
    return group.x


def _draw_measure(axes: Axes, task: Task, name: str) -> None:
    measure = BY_NAME[name]
    label = f"{measure.title}, {measure.unit}"
    # However far intervals reach: the runs themselves are what has to be seen.
    largest = max(value for group in task.groups for value in group.by_seed(name).values())
    limits = (0.0, 1.25 * largest) if measure.bounds != SHARES else None
    if task.axis is None:
        _draw_named(axes, task.groups, name)
        axes.set(xlabel=label, xlim=limits)
        return
    axes.set(ylabel=label)
    for index, (series, groups) in enumerate(task.series.items()):
        shown = [group for group in groups if group.by_seed(name)]
        color = f"C{index}"
        estimates = [group.estimate(name) for group in shown]
        x = [_x(group) for group in shown]
        axes.plot(x, [one.mean for one in estimates], "-", color=color, label=series or None)
        if all(one.n >= 3 for one in estimates):
            axes.fill_between(
                x, [one.low for one in estimates], [one.high for one in estimates], color=color, alpha=0.18, linewidth=0
            )
        for group in shown:
            values = list(group.by_seed(name).values())
            axes.plot([_x(group)] * len(values), values, "o", color=color, markersize=3.5, alpha=0.8)
        inflection = task.inflections.get(series)
        if inflection is not None and inflection.status == "found":
            axes.axvline(float(inflection.window or 0), color=color, linestyle="--", linewidth=1)
            axes.annotate(
                "inflection",
                (float(inflection.window or 0), 0.02),
                xycoords=("data", "axes fraction"),
                rotation=90,
                ha="right",
                va="bottom",
                fontsize=8.5,
                color=color,
            )
    axes.set(ylim=limits)
    _numeric_ticks(axes, task)
    if len(task.series) > 1:
        axes.legend(frameon=False, fontsize=8.5)


def _numeric_ticks(axes: Axes, task: Task) -> None:
    ticks = sorted({float(group.x) for group in task.groups if group.x is not None})
    assert task.axis is not None
    if min(ticks) > 0 and max(ticks) / min(ticks) > 4:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
    labels = [f"{tick:g}" for tick in ticks]
    if task.axis == WINDOW and task.cap:
        labels = [f"{label}\n{_fraction(tick / task.cap)}" for label, tick in zip(labels, ticks, strict=True)]
        axes.set_xlabel("window, tokens and share of the response cap")
    else:
        axes.set_xlabel(task.axis)
    axes.set_xticks(ticks, labels)


def _fraction(share: float) -> str:
    if share == 1:
        return "1"
    inverse = 1 / share
    return f"1/{inverse:.0f}" if abs(inverse - round(inverse)) < 1e-6 else f"{share:.2g}"


def _draw_named(axes: Axes, groups: Sequence[Group], name: str) -> None:
    """One row a group: names are long, and rows have room for them."""
    for row, group in enumerate(groups):
        values = list(group.by_seed(name).values())
        estimate = group.estimate(name)
        axes.plot(values, [row] * len(values), "o", color=f"C{row % 10}", markersize=4, alpha=0.7)
        if values:
            axes.plot([estimate.mean], [row], "|", color=f"C{row % 10}", markersize=14, markeredgewidth=2)
        if estimate.n >= 3:
            axes.plot([estimate.low, estimate.high], [row, row], color=f"C{row % 10}", linewidth=1.5)
    axes.set_yticks(range(len(groups)), [group.label for group in groups])
    axes.invert_yaxis()
    axes.grid(axis="x", linewidth=0.4)


# Curves over training


def _curves(task: Task) -> Iterator[ReportFigure]:
    if task.limits.tokens == 0:
        return
    for name, title, unit, end, x in (
        ("learning_tokens", "Learning curves over tokens", "sampled tokens", task.limits.tokens, "tokens"),
        ("learning_time", "Learning curves over time", "training, s", task.limits.seconds, "seconds"),
    ):
        with _panel() as (figure, axes):
            _draw_bands(
                axes,
                task.groups,
                np.linspace(0, end, _GRID_POINTS),
                lambda trial, grid, x=x: np.interp(grid, getattr(trial.curve, x), trial.curve.accuracy),  # type: ignore[misc]
                SHARES,
            )
            if task.limits.target is not None:
                axes.axhline(task.limits.target, color="0.5", linestyle=":", linewidth=1)
            axes.set(xlabel=unit, ylabel="held-out accuracy, sampled")
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            png = _png(figure)
        caption = f"Mean over seeds, {_BAND}, up to where all runs have come."
        yield ReportFigure(name, title, caption + (" Dotted: the target." if task.limits.target else ""), png)


_BAND = "band: its 95 % interval at each point, where there are three seeds or more"


def _critic_curves(task: Task) -> Iterator[ReportFigure]:
    for name, what in (
        ("explained_variance", "of the returns of finished episodes"),
        ("explained_variance_unfinished", "of the returns of unfinished windows, once they are known"),
    ):
        if not all(_over_tokens(trial, name)[0].size for group in task.groups for trial in group.trials):
            continue
        end = min(trial.sampled_tokens for group in task.groups for trial in group.trials)
        with _panel() as (figure, axes):
            edges = np.linspace(0, end, _BINS_OF_TOKENS + 1)
            middles = (edges[1:] + edges[:-1]) / 2
            _draw_bands(
                axes,
                task.groups,
                middles,
                lambda trial, grid, name=name: np.interp(grid, *_over_tokens(trial, name)),  # type: ignore[misc]
                ANY,
            )
            low = axes.get_ylim()[0]
            axes.set(xlabel="sampled tokens", ylabel="explained variance", ylim=(max(-1.0, low), 1.0))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            png = _png(figure)
        yield ReportFigure(name, f"Critic: {BY_NAME[name].title}", f"Share {what}; {_BAND}.", png)


def _over_tokens(trial: Trial, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Sampled tokens and a critic's metric, each the mean of a few iterations in a row."""
    points = [
        (float(result["tokens"]["sampled"]), value)
        for result in trial.results
        if (value := metric(result, "critic", name)) is not None
    ]
    if not points:
        return np.empty(0), np.empty(0)
    parts = np.array_split(np.array(points), min(_BINS_OF_TOKENS, len(points)))
    means = np.array([part.mean(axis=0) for part in parts])
    return means[:, 0], means[:, 1]


def _draw_bands(
    axes: Axes,
    groups: Sequence[Group],
    grid: np.ndarray,
    values_on: Callable[[Trial, np.ndarray], np.ndarray],
    bounds: tuple[float, float],
) -> None:
    for index, group in enumerate(groups):
        color = f"C{index % 10}"
        style = "-" if index < 10 else "--"
        curves = np.array([values_on(trial, grid) for trial in group.trials])
        estimates = [mean_with_interval(column, bounds=bounds) for column in curves.T]
        axes.plot(grid, [one.mean for one in estimates], style, color=color, label=group.label, linewidth=1.4)
        if len(curves) >= 3:
            axes.fill_between(
                grid,
                [one.low for one in estimates],
                [one.high for one in estimates],
                color=color,
                alpha=0.13,
                linewidth=0,
            )
    if len(groups) > 1:
        axes.legend(frameon=False, fontsize=8.5)


# Update times


def _update_times(task: Task) -> ReportFigure | None:
    parts = ("values_seconds", "policy_seconds", "critic_seconds")
    if not any(group.by_seed(part) for group in task.groups for part in parts):
        return None
    with _panel() as (figure, axes):
        height = 0.26
        for index, part in enumerate(parts):
            estimates = [group.estimate(part) for group in task.groups]
            rows = np.arange(len(task.groups)) + (index - 1) * height
            axes.barh(rows, [one.mean for one in estimates], height, color=f"C{index}", label=BY_NAME[part].title)
            for row, one in zip(rows, estimates, strict=True):
                if one.n >= 3:
                    axes.plot([one.low, one.high], [row, row], color="0.2", linewidth=1)
        axes.set_yticks(range(len(task.groups)), [group.label for group in task.groups])
        axes.invert_yaxis()
        axes.set_xlabel("s per 1,000 trained tokens")
        figure.legend(loc="outside upper center", ncols=len(parts), frameon=False, fontsize=8.5)
        caption = "Learner's wall-clock of each part, mean over seeds; whisker: its 95 % interval."
        return ReportFigure("update_times", "Policy and value updates apart", caption, _png(figure))


# Boundary errors


def _heat_maps(task: Task) -> Iterator[ReportFigure]:
    width = max(trial.boundary_errors[0] for group in task.groups for trial in group.trials)
    if not width:
        return
    late = "Late half of training, all seeds together; cells with fewer than 5 boundaries stay empty."
    held = "mean |V(s_(l-1)) - G_l|"
    by_window = [boundary_profile(group.trials, "held", "window_index") for group in task.groups]
    yield _heat_map(
        task, by_window, "boundary_held_by_window", "Boundary error of held values, by window index", held,
        "window index", [str(index + 1) for index in range(POSITION_BINS)], late,
    )  # fmt: skip
    profiles: tuple[tuple[Literal["held", "bootstrap", "step"], str, str], ...] = (
        ("held", "Boundary error of held values, by position", held),
        ("bootstrap", "Boundary error of bootstrapped values, by position", "mean |V(s_l) - G_l|"),
        ("step", "What hold neglects, by position", "mean |V(s_l) - V(s_(l-1))|"),
    )
    for which, title, meaning in profiles:
        cells = [boundary_profile(group.trials, which, "position_bin") for group in task.groups]
        starts = [str(index * width) for index in range(POSITION_BINS)]
        yield _heat_map(
            task,
            cells,
            f"boundary_{which}_by_position",
            title,
            meaning,
            "position, tokens after the prompt",
            starts,
            late,
        )
    if len(task.groups) <= _MOST_NUMBERS:
        yield _over_training(task)


def _heat_map(
    task: Task,
    rows: Sequence[np.ndarray],
    name: str,
    title: str,
    meaning: str,
    xlabel: str,
    columns: Sequence[str],
    caption: str,
) -> ReportFigure:
    values = np.array(rows)
    filled = np.flatnonzero(~np.isnan(values).all(axis=0))
    count = int(filled[-1]) + 1 if filled.size else 1
    values = values[:, :count]
    with _panel() as (figure, axes):
        image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0.0)
        _write_numbers(axes, values)
        axes.set_yticks(range(len(task.groups)), [group.label for group in task.groups])
        every = -(-count // _MOST_TICKS)
        axes.set_xticks(range(0, count, every), columns[:count:every])
        axes.set(xlabel=xlabel)
        figure.colorbar(image, ax=axes, label=meaning, pad=0.02)
        return ReportFigure(name, title, caption, _png(figure))


def _over_training(task: Task) -> ReportFigure:
    """Groups by progress: whether the critic gets the better of it."""
    length = min(len(trial.results) for group in task.groups for trial in group.trials)
    parts = min(_BINS_OF_TOKENS, length)
    values = np.full((len(task.groups), parts), np.nan)
    for row, group in enumerate(task.groups):
        sums = np.zeros((2, parts))
        for trial in group.trials:
            for iteration, cells in trial.boundary_errors[1].items():
                part = min(parts * (iteration - 1) // len(trial.results), parts - 1)
                sums[:, part] += sum(cell.count for cell in cells), sum(cell.held for cell in cells)
        values[row] = np.where(sums[0] >= LEAST_IN_CELL, sums[1] / np.maximum(sums[0], 1), np.nan)
    with _panel() as (figure, axes):
        image = axes.imshow(values, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0.0)
        axes.set_yticks(range(len(task.groups)), [group.label for group in task.groups])
        axes.set_xticks([-0.5, parts / 2 - 0.5, parts - 0.5], ["start", "half", "end"])
        axes.set(xlabel="training")
        figure.colorbar(image, ax=axes, label="mean |V(s_(l-1)) - G_l|", pad=0.02)
        caption = "All windows and seeds together; cells with fewer than 5 boundaries stay empty."
        return ReportFigure(
            "boundary_held_over_training", "Boundary error of held values, over training", caption, _png(figure)
        )


def _write_numbers(axes: Axes, values: np.ndarray) -> None:
    if values.shape[1] > _MOST_NUMBERS or np.isnan(values).all():
        return
    middle = np.nanmax(values) / 2
    for (row, column), value in np.ndenumerate(values):
        if not np.isnan(value):
            color = "black" if value > middle else "white"
            axes.text(
                column, row, f"{value:.2g}".removeprefix("0"), ha="center", va="center", fontsize=8.5, color=color
            )


# Canvas


@contextmanager
def _panel() -> Iterator[tuple[Figure, Axes]]:
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=_SIZE, layout="constrained")
        yield figure, figure.subplots()


def _png(figure: Figure) -> bytes:
    """In a palette: the page holds every figure, and is to stay small."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, dpi=_DPI)
    Image.open(drawn).convert("RGB").quantize(_COLORS, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return small.getvalue()


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
