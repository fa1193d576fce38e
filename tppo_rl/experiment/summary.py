"""The summary of a run: one dictionary, `summary.json`, and the table at the end."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from tppo_rl.algorithms.peak_memory import LEARNER_GPU
from tppo_rl.core.whole_files import write_whole
from tppo_rl.plan.memory import Memory
from tppo_rl.plan.placement import Placed

SUMMARY = "summary.json"


def summarize(
    result: Mapping[str, Any], evaluation: Mapping[str, Mapping[str, float]], *, interrupted: bool = False
) -> dict[str, Any]:
    """Builds the summary from the last result of a run and its last evaluation.

    Accuracies are fractions of `heldout_n` fixed prompts; those without `greedy` in their name are sampled at the training
    temperature. Tokens are counted over the whole run, seconds are wall-clock. `interrupted` says whether the user ended the run
    before its limits; then nothing was evaluated at its end.
    """
    before = result["heldout_before"]
    accounts = result["run"]
    tokens = result["tokens"]
    summary: dict[str, Any] = {"mode": result["mode"], "seed": result["seed"], "interrupted": interrupted}
    for sampling, suffix in (("sampled", ""), ("greedy", "_greedy")):
        for moment, values in (("before", before.get(sampling, {})), ("after", evaluation.get(sampling, {}))):
            for name, key in (
                ("heldout_accuracy", "accuracy"),
                ("heldout_standard_error", "standard_error"),
                ("heldout_return", "return_mean"),
                ("heldout_response_length", "response_length_mean"),
                ("heldout_truncated_fraction", "truncated_fraction"),
            ):
                summary[f"{name}_{moment}{suffix}"] = values.get(key)
    summary |= {
        "heldout_n": evaluation.get("sampled", {}).get("n", 0),
        "tokens": {key: int(tokens[key]) for key in ("sampled", "trained", "queued", "in_flight", "dropped")},
        "tokens_dropped_by_reason": tokens["dropped_by_reason"],
        "updates": result["training_iteration"],
        "slot_occupancy": accounts["slot_occupancy_lifetime"],
        "wall_s": accounts["wall_s"],
        "seconds": {part: round(seconds, 3) for part, seconds in sorted(accounts["seconds"].items())},
        "largest_staleness": accounts["largest_staleness"],
        "largest_fresh_log_prob_diff": accounts["largest_fresh_log_prob_diff"],
        "largest_ratio_deviation": accounts["largest_ratio_deviation"],
    }
    return summary


def beside_plan(memory: Memory, peaks: Mapping[str, int], placed: Placed | None = None) -> dict[str, dict[str, int]]:
    """What was planned of each kind of process and the most that one of them has held, bytes.

    Args:
        memory: What was planned.
        peaks: By kind of process; `LEARNER_GPU` is a learner's GPU.
        placed: The placement, which says what a learner's GPU was to hold; None: nothing does.
    """
    planned: dict[str, int] = {process: memory.of(process) for process in memory.processes}
    if placed is not None:
        planned[LEARNER_GPU] = placed.needs.peak
    return {name: {"planned": size, "peak": peaks[name]} for name, size in planned.items() if name in peaks}


def write_summary(folder: Path, summary: Mapping[str, Any]) -> Path:
    """Writes `summary.json` into the run's folder."""
    path = folder / SUMMARY
    write_whole(path, json.dumps(summary, indent=2) + "\n")
    return path


def read_summary(folder: Path) -> dict[str, Any]:
    """The `summary.json` of a run's folder."""
    return dict(json.loads((folder / SUMMARY).read_text(encoding="utf-8")))


def summary_table(summary: Mapping[str, Any], folder: Path) -> Table:
    """The table that a run ends with."""
    table = Table(title=f"{folder.name}: {summary['mode']}, seed {summary['seed']}", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for label, suffix in (("sampled", ""), ("greedy", "_greedy")):
        table.add_row(f"held-out accuracy, {label}", _before_after(summary, "heldout_accuracy", suffix, 100, "%"))
        table.add_row(f"return, {label}", _before_after(summary, "heldout_return", suffix, 1, ""))
        table.add_row(
            f"response length, {label}", _before_after(summary, "heldout_response_length", suffix, 1, " tokens")
        )
    table.add_row("held-out prompts", str(summary["heldout_n"]))
    for name, count in summary["tokens"].items():
        table.add_row(f"tokens {name.replace('_', ' ')}", f"{count:,}")
    table.add_row("slot occupancy", f"{summary['slot_occupancy']:.3f}")
    table.add_row("largest staleness", f"{summary['largest_staleness']} versions")
    table.add_row("largest log-prob gap, fresh tokens", f"{summary['largest_fresh_log_prob_diff']:.1e} nats")
    table.add_row("wall-clock", f"{summary['wall_s']:.0f} s")
    for part, seconds in summary["seconds"].items():
        table.add_row(f"  {part.replace('_', ' ')}", f"{seconds:.1f} s")
    table.add_row("folder", str(folder))
    table.add_row("look at it", f"tensorboard --logdir {folder}")
    return table


def _before_after(summary: Mapping[str, Any], name: str, suffix: str, scale: float, unit: str) -> str:
    before, after = (summary[f"{name}_{moment}{suffix}"] for moment in ("before", "after"))
    if after is None:
        if summary["heldout_n"] and name == "heldout_accuracy":
            return "not said by the environment"
        return "interrupted before the last evaluation" if summary.get("interrupted") else "not evaluated"
    digits = ".3f" if name == "heldout_return" else ".1f"
    error = summary.get(f"heldout_standard_error_after{suffix}")
    spread = f" ± {scale * error:.1f}" if name == "heldout_accuracy" and error is not None else ""
    start = "" if before is None else f"{scale * before:{digits}} → "
    return f"{start}{scale * after:{digits}}{spread}{unit}"
