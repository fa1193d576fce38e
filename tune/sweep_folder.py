"""What lies in the folder of a sweep: its trials, how their options differ, and their learning curves.

Two kinds of folders are read: that of an experiment on Ray Tune (`params.json` in every trial) and that of `tppo-rl compare`
(`options.json` in every run that has ended).
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tppo_rl.config.options import OPTIONS, algorithm_spec
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import ALGORITHMS
from tppo_rl.experiment.learning_curves import evaluation_points
from tppo_rl.experiment.plots import SAMPLINGS
from tppo_rl.experiment.result_log import read_results
from tppo_rl.observability.boundary_errors import BoundaryErrors, read_boundary_errors

Status = Literal["ended", "stopped early", "unfinished", "failed"]
DEFAULT = "(default)"
"""Stands for a key inside of an option that a trial leaves out: only the environment knows its default."""
_STOPPED_EARLY = 0.5
"""A trial that came less far than this share of the furthest one is not compared."""
_NOT_OPTIONS = ("seed", "results_folder")


@dataclass(frozen=True)
class Curve:
    """Evaluations of a trial, arrays of one length, the first before any update."""

    tokens: np.ndarray
    """Sampled so far."""
    seconds: np.ndarray
    """Wall-clock so far, without start-up and evaluations."""
    accuracy: np.ndarray
    """Share of held-out prompts right at the training temperature."""
    accuracy_greedy: np.ndarray
    response_length: np.ndarray
    """Mean, tokens, at the training temperature."""


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    name: str
    folder: Path
    experiment: str | None
    """Its name in a run file, in a comparison of several; None in a grid."""
    options: Mapping[str, Any]
    """By dotted key, without the seed, with `run`, the algorithm, and the limits of `stop` where they are known."""
    seed: int
    status: Status
    results: Sequence[Mapping[str, Any]]
    """One an iteration; one that was repeated after a resume stands there once."""
    summary: Mapping[str, Any]

    @property
    def sweep(self) -> str:
        """Name of its sweep's folder."""
        return self.folder.parent.name

    @property
    def compared(self) -> bool:
        """Whether it went as far as it should."""
        return self.status == "ended"

    @property
    def window(self) -> int:
        """Most sampled tokens of a fragment."""
        return int(self.option("window_length") or self.option("max_response_length"))

    @cached_property
    def curve(self) -> Curve:
        """Empty where nothing was evaluated."""
        return _curve(self.results, self.summary)

    @cached_property
    def boundary_errors(self) -> tuple[int, dict[int, list[BoundaryErrors]]]:
        """Tokens of a bin of positions, and errors by iteration."""
        return read_boundary_errors(self.folder)

    def option(self, key: str) -> Any:
        """Value of an option, its default where it was not given."""
        return self.options[key] if key in self.options else self.default(key)

    def default(self, key: str) -> Any:
        """What an option is where it is not given, `DEFAULT` where that is not known here."""
        run = self.options.get("run")
        of_algorithm = algorithm_spec(str(run)).options if run is not None else {}
        if key in of_algorithm:
            return of_algorithm[key]
        return OPTIONS[key].default if key in OPTIONS else DEFAULT

    @property
    def sampled_tokens(self) -> int:
        """Of the whole trial."""
        return int(self.results[-1]["tokens"]["sampled"])

    @property
    def training_seconds(self) -> float:
        """Wall-clock of the whole trial, without start-up and evaluations."""
        return training_seconds(self.results[-1])


def training_seconds(result: Mapping[str, Any]) -> float:
    """Wall-clock up to a result, without start-up and evaluations."""
    seconds = result["run"]["seconds"]
    return float(result["run"]["wall_s"] - seconds.get("evaluation", 0.0) - seconds.get("setup", 0.0))


def metric(result: Mapping[str, Any], group: str, name: str) -> float | None:
    """A metric of a result, None where the iteration has none: RLlib then reports NaN, for which Tune writes null."""
    value = result.get(group, {}).get(name)
    return None if value is None or math.isnan(value) else float(value)


def read_sweep(folder: Path) -> list[Trial]:
    """Reads the trials of a sweep, in the order of their names.

    Raises:
        OptionError: there is no such folder, or no trial in it that has ended.
    """
    if not folder.is_dir():
        raise OptionError(f"sweep={str(folder)!r}: no such folder; give the one of a sweep, for example runs/windows")
    trials = [_read_trial(path) for path in sorted(folder.iterdir()) if (path / "result.json").is_file()]
    if not any(trial.compared for trial in trials):
        raise OptionError(
            f"sweep={str(folder)!r}: holds no trial that has ended (folders with result.json and summary.json); run a file "
            "with a grid by `tppo-rl train file`, or one of several experiments by `tppo-rl compare`"
        )
    return _without_early_ends(trials)


def differing_keys(trials: Sequence[Trial]) -> list[str]:
    """Options that are not the same in all trials, by dotted key; the seed is not one of them."""
    keys = sorted({key for trial in trials for key in trial.options})
    return [key for key in keys if len({canonical(trial.option(key)) for trial in trials}) > 1]


def canonical(value: Any) -> str:
    """A text that is the same for the same value; numbers of one size are one value."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return repr(float(value)) if number else json.dumps(value, sort_keys=True, default=str)


def flat_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Options by dotted key: `{"env_config": {"task": "lcm"}}` as `{"env_config.task": "lcm"}`."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_options(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read_trial(folder: Path) -> Trial:
    """Of a run of `compare` that has not ended nothing but its name is known."""
    experiment: str | None = None
    options: dict[str, Any] = {}
    if (folder / "params.json").is_file():
        options = _read_json(folder / "params.json")
        options["run"] = next((name for name in ALGORITHMS if folder.name.startswith(f"{name}_")), options.get("run"))
    elif (folder / "options.json").is_file():
        body = _read_json(folder / "options.json")
        options = body["config"] | {"run": body["run"], "stop": body["stop"]}
        options |= {"env": body["env"]} if body["env"] else {}
        experiment = folder.name.rpartition("-seed")[0] or folder.name
    by_iteration = {result["training_iteration"]: result for result in read_results(folder)}
    summary = _read_json(folder / "summary.json") if (folder / "summary.json").is_file() else {}
    status: Status = "ended"
    if not summary or not by_iteration or not options:
        status = "failed" if (folder / "error.txt").is_file() else "unfinished"
    return Trial(
        name=folder.name,
        folder=folder,
        experiment=experiment,
        options={key: value for key, value in flat_options(options).items() if key not in _NOT_OPTIONS},
        seed=int(options.get("seed", OPTIONS["seed"].default)),
        status=status,
        results=[by_iteration[iteration] for iteration in sorted(by_iteration)],
        summary=summary,
    )


def _without_early_ends(trials: Sequence[Trial]) -> list[Trial]:
    """Marks what a scheduler has stopped: short in tokens and in time, where a limit on one of them leaves the other open."""
    ended = [trial for trial in trials if trial.compared]
    tokens = _STOPPED_EARLY * max((trial.sampled_tokens for trial in ended), default=0)
    seconds = _STOPPED_EARLY * max((trial.training_seconds for trial in ended), default=0.0)
    return [
        replace(trial, status="stopped early")
        if trial.compared and trial.sampled_tokens < tokens and trial.training_seconds < seconds
        else trial
        for trial in trials
    ]


def _curve(results: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Curve:
    points = evaluation_points(results)
    at = {0: 0.0} | {int(result["tokens"]["sampled"]): training_seconds(result) for result in results}
    rows = [
        (
            float(tokens),
            at[tokens],
            *(evaluation[sampling]["accuracy"] for sampling in SAMPLINGS),
            evaluation["sampled"]["response_length_mean"],
        )
        for tokens, evaluation in points
        if "accuracy" in evaluation["sampled"]
    ]
    end = _evaluation_at_the_end(results[-1], summary)
    if end is not None:
        rows.append((float(results[-1]["tokens"]["sampled"]), training_seconds(results[-1]), *end))
    columns = np.array(rows, np.float64).reshape(-1, 5).T
    return Curve(*columns)


def _evaluation_at_the_end(last: Mapping[str, Any], summary: Mapping[str, Any]) -> tuple[float, float, float] | None:
    """Of the summary, unless it is that of an earlier iteration: a summary of Tune repeats the newest that was made."""
    if "evaluation" in last or summary.get("heldout_accuracy_after") is None:
        return None
    end = tuple(
        float(summary[key])
        for key in ("heldout_accuracy_after", "heldout_accuracy_after_greedy", "heldout_response_length_after")
    )
    latest = last.get("heldout_latest") or {}
    if latest and end == (
        latest["sampled"].get("accuracy"),
        latest["greedy"].get("accuracy"),
        latest["sampled"]["response_length_mean"],
    ):
        return None
    return end[0], end[1], end[2]


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
