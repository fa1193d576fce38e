"""Forecasts beside the truth: of one run that has ended, and of many, with how often the intervals held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Column, Table
from rich.text import Text
from scipy import stats

from tppo_rl.core.errors import OptionError
from tppo_rl.core.result_keys import lookup
from tppo_rl.experiment.forecast import (
    PACE,
    SAMPLED,
    SHARE,
    Forecast,
    ForecastAccuracy,
    make_forecast,
    read_forecast,
    results_up_to,
)
from tppo_rl.experiment.result_log import RESULTS, read_results
from tppo_rl.experiment.summary import SUMMARY, read_summary
from tppo_rl.maths.final_accuracy import LEVEL
from tppo_rl.plan.memory import GIB


def truth_table(summary: Mapping[str, Any]) -> Table | None:
    """What was planned before a run, foretold at a fifth of its tokens, and came; None where nothing was.

    Args:
        summary: Of the run, with `forecast`, `planned` and `memory` where it has them.
    """
    forecast, planned, memory = (summary.get(key) or {} for key in ("forecast", "planned", "memory"))
    if not forecast and not planned and not memory:
        return None
    at = f"at {forecast['tokens'] / forecast['budget']:.0%} of the tokens" if forecast else "at a fifth"
    table = Table("", *(Column(name, justify="right") for name in ("planned", at, "truth")), title="forecast and truth")
    if accuracy := forecast.get("accuracy"):
        text = f"{accuracy['low']:.1%} … {accuracy['high']:.1%} ({accuracy['median']:.1%})"
        table.add_row("held-out accuracy, sampled", "-", text, _truth_of(accuracy))
    elif forecast:
        table.add_row("held-out accuracy, sampled", "-", f"none, {forecast['reason']}", "-")
    pace = forecast.get("pace", {})
    for name, (_, title, spec) in PACE.items():
        known = pace.get(name, {})
        cells = [planned.get(name), known.get("forecast"), known.get("truth")]
        if any(cell is not None for cell in cells):
            table.add_row(title, *("-" if cell is None else format(cell, spec) for cell in cells))
    for process, sizes in memory.items():
        planned_size, peak = (f"{sizes[name] / GIB:.2f} GiB" for name in ("planned", "peak"))
        table.add_row(f"peak memory, {process}", planned_size, "-", peak)
    if forecast and forecast["reached"] < 0.95 * forecast["budget"]:
        table.caption = (
            f"the run ended after {forecast['reached']:,} of the {forecast['budget']:,} tokens that the forecast is for"
        )
    return table


def _truth_of(accuracy: Mapping[str, Any]) -> str:
    if accuracy["truth"] is None:
        return "not measured"
    return (
        f"{accuracy['truth']:.1%} ± {accuracy['standard_error']:.1%}, {'inside' if accuracy['inside'] else 'outside'}"
    )


@dataclass(frozen=True)
class Kept:
    """A kept run, with its forecast of accuracy and what came."""

    name: str
    forecast: Forecast
    accuracy: ForecastAccuracy
    afterwards: bool
    """Whether the forecast was made now, from the first fifth of the results, and not by the run."""
    truth: float
    standard_error: float

    @property
    def inside(self) -> bool:
        return self.accuracy.low <= self.truth <= self.accuracy.high

    @property
    def width(self) -> float:
        return self.accuracy.high - self.accuracy.low


def runs_in(folder: Path) -> list[Path]:
    """The folder, if it is a run's, or those of the runs in it.

    Raises:
        OptionError: it holds none.
    """
    if (folder / RESULTS).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
    if not found:
        raise OptionError(
            f"RUN={str(folder)!r}: no {RESULTS} here and none in its folders; give the folder of a run, or of several"
        )
    return found


def read_kept(folder: Path) -> Kept | str:
    """Reads a run that has ended; a text says why there is no forecast to it.

    A run that has made a forecast is held to that. For another one, tokens are counted as sampled, and its budget is what it has
    sampled in the end.
    """
    if not (folder / SUMMARY).is_file():
        return "it has not ended"
    summary = read_summary(folder)
    if summary["interrupted"]:
        return "it was interrupted"
    if summary["heldout_accuracy_after"] is None:
        return "its environment does not say which responses are right"
    results = read_results(folder)
    if not results:
        return "it has no results"
    made = read_forecast(folder)
    forecast = made or _made_now(results_up_to(results, summary["updates"]), summary["heldout_n"])
    if forecast.accuracy is None:
        return forecast.reason or ""
    truth, error = summary["heldout_accuracy_after"], summary["heldout_standard_error_after"]
    return Kept(folder.name, forecast, forecast.accuracy, made is None, truth, error)


def _made_now(results: Sequence[Mapping[str, Any]], prompts: int) -> Forecast:
    budget = float(lookup(results[-1], SAMPLED))
    enough = next(index for index, result in enumerate(results) if lookup(result, SAMPLED) >= SHARE * budget)
    return make_forecast(results[: enough + 1], SAMPLED, budget, prompts)


def calibration_table(runs: Sequence[Kept]) -> Table:
    """A row for each run: when the forecast was made, interval, median, truth with its standard error, inside or not."""
    table = Table(
        Column("run", no_wrap=True),
        *(Column(name, justify="right") for name in ("at", f"{LEVEL:.0%} interval, %", "width", "median", "truth, %")),
        "",
    )
    for one in runs:
        table.add_row(
            Text(one.name),
            f"{one.forecast.share:.0%}",
            f"{100 * one.accuracy.low:.1f} … {100 * one.accuracy.high:.1f}",
            f"{100 * one.width:.1f}",
            f"{100 * one.accuracy.median:.1f}",
            f"{100 * one.truth:.1f} ± {100 * one.standard_error:.1f}",
            "inside" if one.inside else "outside",
        )
    return table


def calibration_words(runs: Sequence[Kept]) -> str:
    """How many of the intervals held, how many would of exact ones, and how wide they are."""
    number, inside = len(runs), sum(one.inside for one in runs)
    low, high = (int(end) for end in stats.binom.interval(0.95, number, LEVEL))
    wide = sum(not one.accuracy.tells for one in runs)
    later = sum(one.afterwards for one in runs)
    prompts = sorted({one.accuracy.prompts for one in runs})
    return "\n".join(
        [
            f"{inside} of {number} inside ({inside / number:.0%}; exact intervals of {LEVEL:.0%} would hold {low} to {high} of {number})",
            f"mean width {100 * np.mean([one.width for one in runs]):.1f} points; mean of truth minus median "
            f"{100 * np.mean([one.truth - one.accuracy.median for one in runs]):+.1f}; {wide} where the curve could not tell",
            f"accuracy measured on {' to '.join(str(count) for count in dict.fromkeys([prompts[0], prompts[-1]]))} prompts; {later} of "
            f"the forecasts were made now, from the first fifth of the results",
        ]
    )
