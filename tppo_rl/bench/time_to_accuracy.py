"""The progress of a run, read from the results that it wrote, and its figure.

All that passes counts, logs included, but the start and the evaluations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from tppo_rl.experiment.plots import draw_band
from tppo_rl.experiment.result_log import read_results
from tppo_rl.experiment.summary import read_summary


@dataclass(frozen=True)
class Progress:
    """A run at its evaluations, arrays of one length, the first entry before any update."""

    seconds: np.ndarray
    """So far, without the start and the evaluations."""
    generation_seconds: np.ndarray
    """In which the env-runners were sampling, sum over them."""
    tokens: np.ndarray
    """Sampled so far."""
    accuracy: np.ndarray
    """On the held-out prompts, sampled at the training temperature."""


def read_progress(folder: Path) -> Progress:
    """Reads the run of a folder; it must have evaluated before its first update.

    Raises:
        ValueError: it has not.
    """
    results = read_results(folder)
    if not results or not results[0].get("heldout_before"):
        raise ValueError(f"{folder}: no evaluation before the first update; set evaluation_interval")
    points = [(0.0, 0.0, 0.0, float(results[0]["heldout_before"]["sampled"]["accuracy"]))]
    points += [
        (*_spent(result), float(result["evaluation"]["sampled"]["accuracy"]))
        for result in results
        if "evaluation" in result
    ]
    end = (*_spent(results[-1]), float(read_summary(folder)["heldout_accuracy_after"]))
    if points[-1][2] < end[2]:
        points.append(end)
    return Progress(*np.array(points).T)


def plot_progress(progress: Mapping[str, Sequence[Progress]], target: float, path: Path) -> None:
    """Draws accuracy over training time, and over its part in which env-runners sampled, into a PNG file.

    Args:
        progress: Runs of each experiment; drawn are their mean and the range from smallest to largest.
        target: Accuracy that the experiments are compared at, a share.
        path: Of the file.
    """
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(8, 3.2), layout="constrained")
        for axes, part, label in zip(
            figure.subplots(1, 2, sharey=True),
            ("seconds", "generation_seconds"),
            ("training time, s", "of which env-runners sampled, s"),
            strict=True,
        ):
            for index, (name, runs) in enumerate(progress.items()):
                draw_band(axes, [(getattr(run, part), run.accuracy) for run in runs], color=f"C{index}", label=name)
            axes.axhline(target, color="0.75", linewidth=0.8, zorder=0)
            axes.set(xlabel=label, xlim=(0, None))
        figure.axes[0].set_ylabel("held-out accuracy, sampled")
        figure.axes[1].legend(frameon=False, loc="lower right")
        figure.savefig(path, dpi=150)


def _spent(result: Mapping[str, Any]) -> tuple[float, float, float]:
    run = result["run"]
    seconds = run["wall_s"] - run["seconds"]["setup"] - run["seconds"]["evaluation"]
    return float(seconds), float(run["seconds"]["env_runner_sampling"]), float(result["tokens"]["sampled"])
