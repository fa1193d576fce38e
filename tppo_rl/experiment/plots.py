"""Figures of runs: held-out accuracy and response length over sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tppo_rl.experiment.learning_curves import evaluation_points, known, learning_curve
from tppo_rl.experiment.result_log import read_results
from tppo_rl.experiment.summary import read_summary

SAMPLINGS = ("sampled", "greedy")
_GRID_POINTS = 60


def plot_comparison(folders: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Draws experiments with several runs each into a PNG file: mean over the runs, band from smallest to largest.

    Evaluations of different runs stand at different numbers of tokens; between them curves are interpolated linearly.
    """
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        panels = figure.subplots(1, 3)
        for index, (name, runs) in enumerate(folders.items()):
            curves = [np.array(learning_curve(folder)) for folder in runs]
            for column, axes in enumerate(panels, start=1):
                draw_band(axes, [(curve[:, 0], curve[:, column]) for curve in curves], color=f"C{index}", label=name)
        for axes, label in zip(
            panels, ("held-out accuracy, sampled", "held-out accuracy, greedy", "response length, tokens"), strict=True
        ):
            axes.set(xlabel="sampled tokens", ylabel=label)
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        panels[0].legend(frameon=False, fontsize=7)
        figure.savefig(path, dpi=150)


def draw_band(axes: Axes, curves: Sequence[tuple[np.ndarray, np.ndarray]], *, color: str, label: str) -> None:
    """Draws the mean of curves (x from 0 on, y) up to the end of the shortest, and a band from smallest to largest."""
    grid = np.linspace(0, min(x[-1] for x, _ in curves), _GRID_POINTS)
    values = np.array([np.interp(grid, x, y) for x, y in curves])
    axes.plot(grid, values.mean(axis=0), color=color, label=label, linewidth=1.2)
    axes.fill_between(grid, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)


def plot_runs(folders: Sequence[Path], path: Path) -> None:
    """Draws the runs of the given folders, one curve each, into a PNG file."""
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        accuracy, length = figure.subplots(1, 2)
        for folder in folders:
            _plot_run(folder, accuracy, length, label=len(folders) == 1 or folder == folders[0])
        accuracy.set(xlabel="sampled tokens", ylabel="held-out accuracy", ylim=(0, 1))
        length.set(xlabel="sampled tokens", ylabel="response length, tokens", ylim=(0, None))
        for axes in (accuracy, length):
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            axes.legend(frameon=False)
        figure.savefig(path, dpi=150)


def _plot_run(folder: Path, accuracy: Axes, length: Axes, *, label: bool) -> None:
    results = read_results(folder)
    points = evaluation_points(results)
    summary = read_summary(folder)
    tokens = [count for count, _ in points]
    last = summary["tokens"]["sampled"]
    for sampling, color in zip(SAMPLINGS, ("C0", "C1"), strict=True):
        suffix = "" if sampling == "sampled" else "_greedy"
        values = [known(evaluation[sampling].get("accuracy")) for _, evaluation in points]
        errors = [known(evaluation[sampling].get("standard_error")) for _, evaluation in points]
        lengths = [evaluation[sampling]["response_length_mean"] for _, evaluation in points]
        at = tokens
        if not tokens or tokens[-1] < last:
            at = [*tokens, last]
            values.append(known(summary[f"heldout_accuracy_after{suffix}"]))
            errors.append(known(summary[f"heldout_standard_error_after{suffix}"]))
            lengths.append(summary[f"heldout_response_length_after{suffix}"])
        name = f"held-out, {sampling}" if label else None
        accuracy.errorbar(at, values, errors, color=color, label=name, capsize=2, linewidth=1.2)
        length.plot(at, lengths, color=color, label=name, linewidth=1.2)
    trained = [(r["tokens"]["sampled"], r["rollout"].get("response_length_mean")) for r in results]
    shown = [(count, value) for count, value in trained if value is not None]
    length.plot(*zip(*shown, strict=True), color="0.75", linewidth=0.8, label="training" if label else None, zorder=0)
