"""What a run will end with, said when a fifth of its tokens is through, and held against the truth when it has ended.

result.json up to a fifth ─▶ accuracy: held-out evaluations and training responses ─▶ maths.final_accuracy ─┐
                          ─▶ seconds an update, slot occupancy, staleness: their means so far ──────────────┤
summary.json, result.json after it ─▶ truth ◀─────────────────── side by side ──────────────── forecast.json
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.core.result_keys import lookup
from tppo_rl.core.whole_files import write_whole
from tppo_rl.experiment.result_log import read_results
from tppo_rl.maths.final_accuracy import LEVEL, forecast_final_accuracy

FORECAST = "forecast.json"
SHARE = 0.2
"""Of the tokens, after which a forecast is made."""
SAMPLED = "tokens/sampled"
TOKEN_KEYS = (SAMPLED, "num_env_steps_sampled_lifetime", "tokens/trained")
"""Limits in tokens; with another one nobody knows which part of a run is through."""
_LATEST = 0.5
"""Share of the tokens after which it is no forecast any more."""
_SHORT, _LONG = 0.95, 1.25
"""Shares of the foretold tokens between which a run may end; the last iteration goes beyond its limit."""
PACE = {
    "seconds_per_update": ("time/iteration", "seconds an update", ".3g"),
    "slot_occupancy": ("rollout/slot_occupancy", "slot occupancy", ".3f"),
    "staleness": ("staleness/mean", "staleness, mean", ".2f"),
}
"""Key of results, name and form of what is foretold beside accuracy: that it goes on as it did."""


@dataclass(frozen=True)
class ForecastAccuracy:
    """Held-out accuracy at the end, sampled, shares; `low` and `high` hold 90 %."""

    low: float
    median: float
    high: float
    quantiles: list[float]
    """At `final_accuracy.RANKS`."""
    tells: bool
    """False: the curve so far does not narrow what its start leaves open."""
    prompts: int
    """That the last accuracy will be measured on."""
    evaluations: int
    """That were there."""
    responses: int
    """Of the training, that were there."""


@dataclass(frozen=True)
class Forecast:
    """What `forecast.json` holds."""

    iteration: int
    """After which it was made."""
    key: str
    """Of results: which tokens count."""
    tokens: int
    """That were through."""
    budget: int
    """That the forecast is for."""
    accuracy: ForecastAccuracy | None
    reason: str | None
    """Why accuracy is not foretold."""
    pace: dict[str, float]
    """Means so far, by the names of `PACE`; what is not known is left out."""

    @property
    def share(self) -> float:
        return self.tokens / self.budget

    def is_of(self, reached: float) -> bool:
        """Whether a run that ended with so many tokens is what was foretold: a limit may be raised, or another one ends a run."""
        return _SHORT * self.budget <= reached <= _LONG * self.budget

    def words(self) -> str:
        """The forecast of accuracy as a sentence."""
        start = f"forecast after {self.share:.0%} of {self.budget:,} tokens"
        one = self.accuracy
        if one is None:
            return f"{start}: none of accuracy, {self.reason}"
        seen = f"{_some(one.evaluations, 'evaluation')}, {_some(one.responses, 'training response')}"
        doubt = "" if one.tells else "; the curve so far cannot tell where it ends"
        return (
            f"{start}: held-out accuracy will end between {one.low:.1%} and {one.high:.1%} ({LEVEL:.0%} interval, median "
            f"{one.median:.1%}; from {seen}){doubt}"
        )


def make_forecast(results: Sequence[Mapping[str, Any]], key: str, budget: float, prompts: int | None) -> Forecast:
    """Makes the forecast of a run from its results so far.

    Args:
        results: One for each iteration, from the first on.
        key: Of results: tokens of the run so far.
        budget: Tokens that the run will have.
        prompts: Of the last evaluation; None: as many as the evaluations before it had.
    """
    heldout, training = accuracies_so_far(results, key, budget)
    tokens = int(lookup(results[-1], key))
    accuracy, reason = None, None
    if tokens > _LATEST * budget:
        reason = f"for a single update takes more than {SHARE:.0%} of the tokens"
    elif not len(heldout) + len(training):
        reason = "for no evaluation and no training response has said what is right"
    else:
        prompts = prompts or (int(heldout[-1, 2]) if len(heldout) else 1)
        found = forecast_final_accuracy(heldout, training, prompts)
        counts = len(heldout), int(training[:, 2].sum())
        accuracy = ForecastAccuracy(
            found.low, found.median, found.high, list(found.quantiles), found.tells, prompts, *counts
        )
    return Forecast(
        int(results[-1]["training_iteration"]), key, tokens, int(budget), accuracy, reason, pace_of(results)
    )


def accuracies_so_far(results: Sequence[Mapping[str, Any]], key: str, budget: float) -> tuple[np.ndarray, np.ndarray]:
    """Evaluations and training batches of a run, float [E, 3] and [T, 3]: share of the tokens, accuracy, number."""
    heldout, training = [], []
    before = results[0].get("heldout_before") or {}
    heldout.append((0.0, before.get("sampled") or {}))
    at = 0.0
    for result in results:
        share = min(float(lookup(result, key)) / budget, 1 - 1e-9)
        evaluation = result.get("evaluation") or {}
        heldout.append((share, evaluation.get("sampled") or {}))
        accuracy = lookup(result, "rollout/accuracy")
        number = lookup(result, "rollout/finished_episodes") or 0
        if _is_number(accuracy) and number > 0:
            # Responses of a batch were sampled from the last one on.
            training.append(((at + share) / 2, float(accuracy), float(number)))
        at = share
    points = [(share, one["accuracy"], one["n"]) for share, one in heldout if _is_number(one.get("accuracy"))]
    return np.array(points, np.float64).reshape(-1, 3), np.array(training, np.float64).reshape(-1, 3)


def pace_of(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Means over iterations, by the names of `PACE`; what no iteration knows is left out."""
    found = {}
    for name, (key, _, _) in PACE.items():
        values = [float(value) for result in results if _is_number(value := lookup(result, key))]
        if values:
            found[name] = float(np.mean(values))
    return found


def write_forecast(folder: Path, forecast: Forecast) -> None:
    """Writes `forecast.json` into the run's folder."""
    write_whole(folder / FORECAST, json.dumps(asdict(forecast), indent=2) + "\n")


def read_forecast(folder: Path) -> Forecast | None:
    """The `forecast.json` of a run's folder; None where there is none."""
    path = folder / FORECAST
    if not path.is_file():
        return None
    content = json.loads(path.read_text(encoding="utf-8"))
    accuracy = content.pop("accuracy")
    return Forecast(accuracy=None if accuracy is None else ForecastAccuracy(**accuracy), **content)


class Forecaster:
    """Makes the forecast of a run while it goes on, once.

    Args:
        folder: Of the run; a forecast that lies there is kept, unless it is from a later iteration than the run goes on from.
        stop: Limits of the run by key.
        prompts: Of its evaluations.
        say: Prints a line.
        start: Iteration that the run goes on from; 0 for a new one.
    """

    def __init__(
        self, folder: Path, stop: Mapping[str, float], prompts: int, say: Callable[[str], None], start: int = 0
    ) -> None:
        self._folder = folder
        self._limits = {key: limit for key, limit in stop.items() if key in TOKEN_KEYS and limit > 0}
        self._prompts = prompts
        self._say = say
        made = read_forecast(folder)
        self.forecast = None if made is None or made.iteration > start else made

    def see(self, result: Mapping[str, Any]) -> None:
        """Makes the forecast if this result, which lies in `result.json`, is the first after a fifth of the tokens."""
        if self.forecast is not None or not self._limits:
            return
        key = max(self._limits, key=lambda key: float(lookup(result, key) or 0) / self._limits[key])
        if float(lookup(result, key) or 0) < SHARE * self._limits[key]:
            return
        results = results_up_to(read_results(self._folder), result["training_iteration"])
        self.forecast = make_forecast(results, key, self._limits[key], self._prompts)
        write_forecast(self._folder, self.forecast)
        self._say(self.forecast.words())


def results_up_to(results: Sequence[Mapping[str, Any]], iteration: int) -> list[Mapping[str, Any]]:
    """One result for each iteration up to one, in order; of those that were written again after a kill, the last."""
    newest = {result["training_iteration"]: result for result in results}
    return [newest[number] for number in sorted(newest) if number <= iteration]


def beside_truth(
    forecast: Forecast, results: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]
) -> dict[str, Any]:
    """A forecast and what became of it, as `summary.json` holds it.

    Args:
        forecast: Of the run.
        results: Of the whole run.
        summary: Of the run; without an accuracy, as of a run that was interrupted, there is no truth to it.
    """
    after = pace_of([result for result in results if result["training_iteration"] > forecast.iteration])
    content = asdict(forecast)
    content["reached"] = int(lookup(results[-1], forecast.key))
    content["is_of_these_tokens"] = forecast.is_of(content["reached"])
    content["pace"] = {name: {"forecast": value, "truth": after.get(name)} for name, value in forecast.pace.items()}
    if forecast.accuracy is not None:
        truth = summary["heldout_accuracy_after"]
        content["accuracy"] |= {
            "truth": truth,
            "standard_error": summary["heldout_standard_error_after"],
            "inside": None if truth is None else forecast.accuracy.low <= truth <= forecast.accuracy.high,
        }
    return content


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _some(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
