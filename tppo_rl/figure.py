"""The figure of a run: held-out accuracy and response length over sampled tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from tppo_rl.result_log import read_results
from tppo_rl.summary import read_summary

SAMPLINGS = ("sampled", "greedy")


def evaluation_points(results: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """(sampled tokens, evaluation) before the first update and wherever a result holds an evaluation."""
    points = [(0, results[0]["heldout_before"])] if results[0]["heldout_before"] else []
    points += [(int(result["tokens"]["sampled"]), result["evaluation"]) for result in results if "evaluation" in result]
    return points


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
        values = [evaluation[sampling]["accuracy"] for _, evaluation in points]
        errors = [evaluation[sampling]["standard_error"] for _, evaluation in points]
        lengths = [evaluation[sampling]["response_length_mean"] for _, evaluation in points]
        at = tokens
        if not tokens or tokens[-1] < last:
            at = [*tokens, last]
            values.append(summary[f"heldout_accuracy_after{suffix}"])
            errors.append(summary[f"heldout_standard_error_after{suffix}"])
            lengths.append(summary[f"heldout_response_length_after{suffix}"])
        name = f"held-out, {sampling}" if label else None
        accuracy.errorbar(at, values, errors, color=color, label=name, capsize=2, linewidth=1.2)
        length.plot(at, lengths, color=color, label=name, linewidth=1.2)
    trained = [(r["tokens"]["sampled"], r["rollout"].get("response_length_mean")) for r in results]
    shown = [(count, value) for count, value in trained if value is not None]
    length.plot(*zip(*shown, strict=True), color="0.75", linewidth=0.8, label="training" if label else None, zorder=0)
