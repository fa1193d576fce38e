"""Forecasts beside the truth: of one run that has ended, and of many, with how often the intervals held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from tppo_rl.maths.final_accuracy import LEVEL, interval_by_ranks, rank_of
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
        table.add_row("held-out accuracy", "-", text, _truth_of(accuracy))
    elif forecast:
        table.add_row("held-out accuracy", "-", f"none, {forecast['reason']}", "-")
    pace = forecast.get("pace", {})
    for name, (_, title, spec) in PACE.items():
        known = pace.get(name, {})
        cells = [planned.get(name), known.get("forecast"), known.get("truth")]
        if any(cell is not None for cell in cells):
            table.add_row(title, *("-" if cell is None else format(cell, spec) for cell in cells))
    for process, sizes in memory.items():
        planned_size, peak = (f"{sizes[name] / GIB:.2f} GiB" for name in ("planned", "peak"))
        table.add_row(f"peak memory, {process}", planned_size, "-", peak)
    if forecast and not forecast["is_of_these_tokens"]:
        table.caption = (
            f"the run ended after {forecast['reached']:,} tokens; the forecast is for {forecast['budget']:,}"
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

    folder: Path
    forecast: Forecast
    accuracy: ForecastAccuracy
    interval: tuple[float, float]
    """Of the forecast, or moved by other runs (`moved_by`)."""
    afterwards: bool
    """Whether the forecast was made now, from the first fifth of the results, and not by the run."""
    truth: float | None
    """None: the run has not ended."""
    standard_error: float | None

    @property
    def inside(self) -> bool | None:
        return None if self.truth is None else self.interval[0] <= self.truth <= self.interval[1]

    @property
    def width(self) -> float:
        return self.interval[1] - self.interval[0]


def runs_in(folder: Path, key: str) -> list[Path]:
    """The folder, if it is a run's, or those of the runs in it.

    Raises:
        OptionError: it holds none.
    """
    if (folder / RESULTS).is_file():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{RESULTS}"))
    if not found:
        raise OptionError(
            f"{key}={str(folder)!r}: no {RESULTS} here and none in its folders; give the folder of a run, or of several"
        )
    return found


def read_kept(folder: Path) -> Kept | str:
    """Reads a run; a text says why there is no forecast of its accuracy, or no truth to it.

    A run that has made a forecast is held to that. For another one that has ended, tokens are counted as sampled, and its budget is
    what it has sampled in the end.
    """
    summary = read_summary(folder) if (folder / SUMMARY).is_file() else {}
    made = read_forecast(folder)
    truth, error = (summary.get(f"heldout_{name}_after") for name in ("accuracy", "standard_error"))
    if summary and not summary["interrupted"]:
        if truth is None:
            return "its environment does not say which responses are right"
        results = results_up_to(read_results(folder), summary["updates"])
        if not results:
            return "it has no results"
        forecast = made or _made_now(results, summary["heldout_n"])
        if not forecast.is_of(reached := lookup(results[-1], forecast.key)):
            return f"it ended after {reached:,.0f} tokens, and its forecast is for {forecast.budget:,}"
    elif made is None:
        return "it was interrupted" if summary else "it has not ended"
    else:
        forecast, truth, error = made, None, None
    if forecast.accuracy is None:
        return forecast.reason or ""
    interval = forecast.accuracy.low, forecast.accuracy.high
    return Kept(folder, forecast, forecast.accuracy, interval, made is None, truth, error)


def _made_now(results: Sequence[Mapping[str, Any]], prompts: int) -> Forecast:
    budget = float(lookup(results[-1], SAMPLED))
    enough = next(index for index, result in enumerate(results) if lookup(result, SAMPLED) >= SHARE * budget)
    return make_forecast(results[: enough + 1], SAMPLED, budget, prompts)


def moved_by(run: Kept, others: Sequence[Kept]) -> Kept:
    """Moves the interval of a run by where the truth of other runs of its task lay; itself is left out of them.

    Raises:
        OptionError: too few others have ended.
    """
    ranks = [
        rank_of(other.accuracy.quantiles, other.truth)
        for other in others
        # The same run may have been fetched twice, into two folders.
        if other.truth is not None and (other.forecast, other.truth) != (run.forecast, run.truth)
    ]
    interval = interval_by_ranks(run.accuracy.quantiles, ranks)
    if interval is None:
        raise OptionError(
            f"--like: {len(ranks)} runs beside {run.folder.name} have ended with an accuracy; an interval of {LEVEL:.0%} takes 19"
        )
    return replace(run, interval=interval)


def calibration_table(runs: Sequence[Kept]) -> Table:
    """A row for each run: when the forecast was made, interval, median, truth with its standard error, inside or not."""
    table = Table(
        Column("run", no_wrap=True),
        *(Column(name, justify="right") for name in ("at", f"{LEVEL:.0%} interval, %", "width", "median", "truth, %")),
        "",
    )
    for one in runs:
        low, high = one.interval
        table.add_row(
            Text(one.folder.name),
            f"{one.forecast.share:.0%}",
            f"{100 * low:.1f} … {100 * high:.1f}",
            f"{100 * one.width:.1f}",
            f"{100 * one.accuracy.median:.1f}",
            "-" if one.truth is None else f"{100 * one.truth:.1f} ± {100 * (one.standard_error or 0.0):.1f}",
            "" if one.truth is None else "inside" if one.inside else "outside",
        )
    return table


def calibration_words(runs: Sequence[Kept]) -> str:
    """How many of the intervals held, how many would of exact ones, and how wide they are; runs that have not ended do not count."""
    ended = [one for one in runs if one.truth is not None]
    if not ended:
        return "none of them has ended: there is no truth yet"
    number, inside = len(ended), sum(bool(one.inside) for one in ended)
    low, high = (int(end) for end in stats.binom.interval(0.95, number, LEVEL))
    errors = [one.truth - one.accuracy.median for one in ended if one.truth is not None]
    prompts = sorted({one.accuracy.prompts for one in ended})
    measured = f"{prompts[0]}" if len(prompts) == 1 else f"{prompts[0]} to {prompts[-1]}"
    return "\n".join(
        [
            f"{inside} of {number} inside ({inside / number:.0%}; exact intervals of {LEVEL:.0%} would hold {low} to {high} of {number})",
            f"mean width {100 * np.mean([one.width for one in ended]):.1f} points; truth minus median {100 * np.mean(errors):+.1f} on average",
            f"in {sum(not one.accuracy.tells for one in ended)} of {number} the curve could not tell where it ends",
            f"accuracy measured on {measured} prompts; {sum(one.afterwards for one in ended)} of the forecasts were made now, from the "
            "first fifth of the results",
        ]
    )
