"""Figures of a laboratory report: explained variance along responses, calibration, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "savefig.facecolor": "white"}
_PANELS = (("position", "tokens of the response before the state"), ("share", "share of the response"))
_LOWEST = -0.5
"""Critics may explain far less than nothing; the axis ends here."""
_COSINES = (-1.05, 1.35)
"""Estimates may lie beyond 1."""


def draw_figures(results: Mapping[str, Any], folder: Path) -> list[tuple[str, str]]:
    """Draws all figures that there are data for, as PNG files.

    Args:
        results: What `tppo_rl.lab.laboratory.measure` returns.
        folder: Exists.

    Returns:
        File names and captions.
    """
    drawn = [
        (
            "explained.png",
            "Explained variance of returns, by position and by share of the response: the ceiling, and each critic. "
            "Bars are 95 % intervals.",
            _explained,
        )
    ]
    if results["critics"]:
        drawn.append(
            (
                "calibration.png",
                "Mean true value of states by the critic's value, in tenths. The line is a critic that is right on average.",
                _calibration,
            )
        )
    if any(critic.get("gradients") for critic in results["critics"].values()):
        drawn.append(
            (
                "gradients.png",
                "Cosine between the gradient by the critic's advantages and the true gradient, on tokens of unfinished windows. "
                "Bars are 95 % intervals.",
                _gradients,
            )
        )
    for name, _, draw in drawn:
        with mpl.rc_context(_STYLE):
            figure = draw(results)
            figure.savefig(folder / name, dpi=150)
    return [(name, caption) for name, caption, _ in drawn]


def _explained(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axes, (kind, label) in zip(figure.subplots(1, 2, sharey=True), _PANELS, strict=True):
        prompts = [row for row in results["parts"] if row["name"] == "prompts"] if kind == "position" else []
        rows = [*prompts, *(row for row in results["parts"] if row["kind"] == kind and row["ceiling"] is not None)]
        # By share the weights look ahead, and what bounds a critic is what the true values explain.
        bound = "ceiling" if kind == "position" else "by_true_values"
        _line(axes, rows, lambda row, bound=bound: row[bound], "0.2", "true values")
        for index, name in enumerate(results["critics"]):
            _line(axes, rows, lambda row, name=name: _of(row, name, "explained_of_returns"), f"C{index}", name)
        names = ["0" if row["name"] == "prompts" else row["name"] for row in rows]
        axes.set_xticks(range(len(rows)), [name.removesuffix(" quarter") for name in names], rotation=30, ha="right")
        axes.axhline(0.0, color="0.8", linewidth=0.8, zorder=0)
        axes.set(xlabel=label, ylim=(_LOWEST, 1.02))
    figure.axes[0].set_ylabel("explained variance of returns")
    figure.axes[1].legend(frameon=False)
    return figure


def _line(axes: Axes, rows: Sequence[Mapping[str, Any]], estimate_of: Any, color: str, label: str) -> None:
    found = [(place, one) for place, row in enumerate(rows) if (one := estimate_of(row)) and one["value"] is not None]
    if not found:
        return
    places, estimates = zip(*found, strict=True)
    values = [one["value"] for one in estimates]
    axes.plot(places, values, "o-", color=color, markersize=3, linewidth=1.2, label=label)
    for place, one in found:
        if one["low"] is not None:
            axes.plot([place, place], [one["low"], one["high"]], color=color, linewidth=0.8)


def _of(row: Mapping[str, Any], critic: str, quantity: str) -> Any:
    return row["critics"].get(critic, {}).get(quantity)


def _calibration(results: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(4.5, 3.6), layout="constrained")
    axes = figure.subplots()
    ends: list[float] = []
    for index, (name, critic) in enumerate(results["critics"].items()):
        rows = critic["calibration"]
        values, true = ([row[key] for row in rows] for key in ("value", "true_value"))
        ends += [*values, *true]
        axes.plot(values, true, "o-", color=f"C{index}", markersize=3, linewidth=1.2, label=name)
    axes.plot([min(ends), max(ends)], [min(ends), max(ends)], color="0.6", linewidth=0.8, zorder=0)
    axes.set(xlabel="critic's value", ylabel="true value")
    axes.legend(frameon=False)
    return figure


def _gradients(results: Mapping[str, Any]) -> Figure:
    rows = list(_cosines(results))
    figure = Figure(figsize=(6, 1.0 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, estimate, color) in enumerate(rows):
        axes.plot(estimate["value"], place, "o", color=color, markersize=5)
        if estimate["low"] is not None:
            axes.plot([estimate["low"], estimate["high"]], [place, place], color=color, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [label for label, _, _ in rows])
    axes.invert_yaxis()
    axes.axvline(0.0, color="0.8", linewidth=0.8, zorder=0)
    axes.axvline(1.0, color="0.8", linewidth=0.8, zorder=0)
    axes.set(xlabel="cosine with the true gradient", xlim=_COSINES)
    return figure


def _cosines(results: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], str]]:
    """Label, cosine and color of each critic's gradients."""
    for index, (name, critic) in enumerate(results["critics"].items()):
        for way, figures in (critic.get("gradients") or {}).items():
            if way != "returns" and figures["cosine"]["value"] is not None:
                yield f"{name}, {way.replace('_', ' ')}", figures["cosine"], f"C{index}"
