"""Predictions as a table, a figure, a recommendation in words, and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Column, Table

from tppo_rl.plan.costs import Costs
from tppo_rl.plan.predict import Prediction, Workload
from tppo_rl.plan.windows import MODES, Mode

_MICRO = 1e6


def predictions_table(predictions: Sequence[Prediction], recommended: Prediction, longest: int) -> Table:
    """Returns a row for each mode and window; times are in microseconds of each trained token.

    Args:
        predictions: To be shown.
        recommended: One of them.
        longest: Tokens of the longest response: asynchronous windows of that length are whole responses that run on through weight updates.
    """
    names = (
        "mode",
        "window",
        "env-runners\n+ learners",
        "µs per\ntoken",
        "of them\ngeneration",
        "\nlearner",
        "slot\noccupancy",
        "tokens per\nupdate",
        "processed\nper trained",
        "staleness,\nmean (max); law",
        "operations/byte\nof generation",
    )
    table = Table(*(Column(name, justify="left" if name == "mode" else "right", no_wrap=True) for name in names))
    for one in predictions:
        table.add_row(
            "partial rollouts" if one.mode == "async" and one.window == longest else MODES[one.mode],
            "whole" if one.window in (None, longest) else str(one.window),
            f"{one.env_runners} + {one.learners}",
            f"{_MICRO * one.seconds_per_token:.4g}",
            f"{_MICRO * one.generation_s:.4g}",
            f"{_MICRO * one.learner_s:.4g}",
            f"{one.occupancy:.2f}",
            f"{one.tokens_per_update:,.0f}",
            f"{one.processed_per_trained_token:.2f}",
            f"{one.staleness_mean:.1f} ({one.staleness_max}); {_law(one)}",
            f"{one.intensity:.3g}",
            style="bold" if one is recommended else None,
        )
    return table


def _law(prediction: Prediction) -> str:
    return "-" if prediction.staleness_law is None else f"{prediction.staleness_law:.1f}"


def workload_line(workload: Workload, costs: Costs) -> str:
    """Returns what was planned, in one line."""
    lengths = workload.lengths
    return (
        f"responses {lengths.source} (mean {lengths.mean:.4g}, longest {lengths.longest} tokens), prompts of "
        f"{workload.prompt_length:.4g}; {workload.slots} slots an env-runner; updates of {workload.batch_tokens} tokens; "
        f"{workload.devices} device{'s' if workload.devices > 1 else ''}; costs of {costs.source}"
    )


def recommendation(predictions: Sequence[Prediction], recommended: Prediction, workload: Workload) -> str:
    """Returns which mode, window and split to take, and what it gains."""
    is_whole = recommended.window in (None, workload.lengths.longest)
    mode = "partial rollouts" if is_whole and recommended.mode == "async" else MODES[recommended.mode]
    window = "whole responses" if is_whole else f"window_length {recommended.window}"
    devices = f"{_some(recommended.env_runners, 'env-runner')} and {_some(recommended.learners, 'learner')}"
    if workload.devices == 1 or (workload.colocated and recommended.mode != "async"):
        devices += ", which take turns on the same devices"
    text = f"Take {mode}, {window}, {devices}: {1 / recommended.seconds_per_token:,.0f} trained tokens a second"
    others = []
    for name in MODES:
        fastest = min((one for one in predictions if one.mode == name), key=lambda one: one.seconds_per_token)
        if name != recommended.mode:
            others.append(f"{fastest.seconds_per_token / recommended.seconds_per_token:.2f} times {MODES[name]}'s best")
    return f"{text}, {' and '.join(others)}. {_limit(recommended)}" if others else f"{text}. {_limit(recommended)}"


def write_predictions(
    predictions: Sequence[Prediction], recommended: Prediction, workload: Workload, costs: Costs, path: Path
) -> None:
    """Writes predictions and recommendation as JSON, with the names of `Prediction`'s fields; seconds, tokens."""
    content = {
        "workload": workload_line(workload, costs),
        "recommended": asdict(recommended),
        "predictions": [asdict(one) for one in predictions],
    }
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def plot_predictions(predictions: Sequence[Prediction], recommended: Prediction, path: Path) -> None:
    """Draws time, occupancy, staleness and intensity over the window length into a PNG file."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    longest = max(one.window for one in predictions if one.window is not None)
    with mpl.rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(12, 3.2), layout="constrained")
        panels = figure.subplots(1, 4)
        for index, mode in enumerate(MODES):
            rows = [one for one in predictions if one.mode == mode]
            for axes, values in zip(panels, _values(rows), strict=True):
                _draw(axes, mode, rows, values, color=f"C{index}")
        side_by_side = [one for one in predictions if one.mode == "async"]
        for side, line in (("generation", ":"), ("learner", "--")):
            values = [_MICRO * (one.generation_s if side == "generation" else one.learner_s) for one in side_by_side]
            windows = [one.window for one in side_by_side]
            panels[0].plot(windows, values, line, color="0.6", linewidth=1, label=f"{MODES['async']}, {side}")
        panels[0].plot(
            recommended.window or longest, _MICRO * recommended.seconds_per_token, "k*", label="recommended", zorder=3
        )
        labels = ("µs per trained token", "slot occupancy", "mean staleness, versions", "operations per byte")
        for axes, label in zip(panels, labels, strict=True):
            axes.set(xlabel="window length, tokens", ylabel=label, ylim=(0, None), xscale="log")
            axes.set_xticks(sorted({one.window for one in predictions if one.window is not None}))
            axes.xaxis.set_major_formatter(ScalarFormatter())
            axes.xaxis.set_minor_locator(NullLocator())
            axes.tick_params(axis="x", labelrotation=45)
        panels[0].legend(frameon=False, fontsize=7)
        figure.savefig(path, dpi=150)


def _draw(axes: Any, mode: Mode, rows: Sequence[Prediction], values: Sequence[float], *, color: str) -> None:
    if mode == "ppo":  # Without windows: one level for all of them.
        axes.axhline(values[0], color=color, linewidth=1.2, label=MODES[mode])
        return
    style = "o-" if mode == "async" else "s--"
    windows = [one.window for one in rows]
    axes.plot(windows, values, style, color=color, markersize=3, linewidth=1.2, label=MODES[mode])


def _values(rows: Sequence[Prediction]) -> list[list[float]]:
    return [
        [_MICRO * one.seconds_per_token for one in rows],
        [one.occupancy for one in rows],
        [one.staleness_mean for one in rows],
        [one.intensity for one in rows],
    ]


def _some(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _limit(one: Prediction) -> str:
    if one.mode != "async":
        slower = "generation" if one.generation_s > one.learner_s else "the learner"
        return f"Most of the time is {slower}'s."
    held = one.seconds_per_token > 1.05 * max(one.generation_s, one.learner_s) and one.seconds_per_token < 0.95 * (
        one.generation_s + one.learner_s
    )
    if held:
        return "Updates wait for long windows to close: a shorter window, larger updates or a higher max_staleness would help."
    slower, faster = ("generation", "learners") if one.generation_s > one.learner_s else ("the learner", "env-runners")
    share = min(one.generation_s, one.learner_s) / max(one.generation_s, one.learner_s)
    return f"The slower side is {slower}; {faster} work {share:.0%} of the time."
