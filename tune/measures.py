"""What is measured of one trial of a sweep: efficiency, quality, the critic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from tppo_rl.experiment.learning_curves import reached_after
from tppo_rl.observability.boundary_errors import POSITION_BINS
from tppo_rl.tune.sweep_folder import Trial, metric

SHARES = (0.0, 1.0)
POSITIVE = (0.0, np.inf)
ANY = (-np.inf, np.inf)
LATE = 0.5
"""The critic is judged on the iterations after this share of them: it begins with a random head."""
LEAST_IN_CELL = 5
"""Boundaries below which their mean is not shown."""
_TARGET_SHARE = 0.8

Along = Literal["window_index", "position_bin"]


@dataclass(frozen=True)
class Measure:
    """One quantity of a trial."""

    name: str
    """Column of `trials.csv`."""
    title: str
    unit: str
    bounds: tuple[float, float]
    """What it cannot leave."""
    definition: str


MEASURES = (
    Measure("tokens_per_second", "trained tokens per second", "1/s", POSITIVE, "trained tokens by training seconds"),
    Measure("seconds_to_target", "time to target", "s", POSITIVE, "training seconds until the target accuracy"),
    Measure("tokens_to_target", "tokens to target", "tokens", POSITIVE, "sampled tokens until the target accuracy"),
    Measure("accuracy_final", "final accuracy", "share", SHARES, "held-out, sampled, of the last evaluation"),
    Measure("accuracy_equal_tokens", "accuracy at equal tokens", "share", SHARES, "held-out, sampled, interpolated"),
    Measure("accuracy_equal_time", "accuracy at equal time", "share", SHARES, "held-out, sampled, interpolated"),
    Measure("accuracy_mean", "mean accuracy", "share", SHARES, "over the learning curve up to equal tokens"),
    Measure("slot_occupancy", "slot occupancy", "share", SHARES, "slot-steps that produced a token"),
    Measure("tokens_per_update", "trained tokens of an update", "tokens", POSITIVE, "trained tokens by iterations"),
    Measure("staleness", "staleness", "updates", POSITIVE, "of trained tokens, mean over iterations"),
    Measure("values_seconds", "values", "s per 1,000 tokens", POSITIVE, "wall-clock by trained tokens"),
    Measure("policy_seconds", "policy update", "s per 1,000 tokens", POSITIVE, "wall-clock by trained tokens"),
    Measure("critic_seconds", "critic update", "s per 1,000 tokens", POSITIVE, "wall-clock by trained tokens"),
    Measure("explained_variance", "explained variance", "share", (-np.inf, 1.0), "of finished episodes' returns, late"),
    Measure(
        "explained_variance_unfinished", "explained variance, unfinished", "share", (-np.inf, 1.0),
        "of the returns of unfinished windows, late",
    ),
    Measure("boundary_held", "|V(s_(l-1)) - G_l|", "reward", POSITIVE, "mean over window ends, late"),
    Measure("boundary_bootstrap", "|V(s_l) - G_l|", "reward", POSITIVE, "mean over window ends, late"),
    Measure("boundary_step", "|V(s_l) - V(s_(l-1))|", "reward", POSITIVE, "mean over window ends, late"),
)  # fmt: skip
BY_NAME = {measure.name: measure for measure in MEASURES}


@dataclass(frozen=True)
class Limits:
    """Where trials of one task are compared."""

    tokens: float
    """Sampled by every trial; 0 where nothing was evaluated."""
    seconds: float
    """Trained by every trial."""
    target: float | None
    """Accuracy; None where there is none that says anything."""


def common_limits(trials: Sequence[Trial], target: float | None) -> Limits:
    """Where these trials can be compared.

    Args:
        trials: That have ended, of one task.
        target: Accuracy whose time is taken, a share; None: four fifths of the way from the accuracy before training to the
            best at equal tokens.
    """
    curves = [trial.curve for trial in trials if len(trial.curve.tokens)]
    if len(curves) < len(trials):
        return Limits(0.0, 0.0, None)
    tokens = float(min(curve.tokens[-1] for curve in curves))
    seconds = float(min(curve.seconds[-1] for curve in curves))
    if target is None:
        before = float(np.mean([curve.accuracy[0] for curve in curves]))
        best = max(float(np.interp(tokens, curve.tokens, curve.accuracy)) for curve in curves)
        target = round(before + _TARGET_SHARE * (best - before), 2) if best > before else None
    return Limits(tokens, seconds, target)


def measure(trial: Trial, limits: Limits) -> dict[str, float]:
    """All measures that the trial has, by name; one that it has not (a target never reached) is left out."""
    values = _efficiency(trial) | _critic(trial.results)
    curve = trial.curve
    if len(curve.tokens):
        values["accuracy_final"] = float(curve.accuracy[-1])
    if limits.tokens > 0:
        grid = np.linspace(0, limits.tokens, 200)
        values["accuracy_equal_tokens"] = float(np.interp(limits.tokens, curve.tokens, curve.accuracy))
        values["accuracy_equal_time"] = float(np.interp(limits.seconds, curve.seconds, curve.accuracy))
        values["accuracy_mean"] = float(np.interp(grid, curve.tokens, curve.accuracy).mean())
    if limits.target is not None:
        for name, at in (("tokens_to_target", curve.tokens), ("seconds_to_target", curve.seconds)):
            reached = reached_after(curve.accuracy, at, limits.target)
            if not math.isnan(reached):
                values[name] = reached
    return values | boundary_means(trial)


def boundary_means(trial: Trial) -> dict[str, float]:
    """Mean sizes of the boundary errors of the late iterations; empty if no boundary was closed in them."""
    cells = [cell for _, cell in late_cells(trial)]
    count = sum(cell.count for cell in cells)
    if not count:
        return {}
    return {
        f"boundary_{which}": sum(getattr(cell, which) for cell in cells) / count
        for which in ("held", "bootstrap", "step")
    }


def boundary_profile(trials: Sequence[Trial], which: Literal["held", "bootstrap", "step"], along: Along) -> np.ndarray:
    """Mean sizes of the late boundary errors of all trials together, along window index or position.

    Returns:
        (`POSITION_BINS`,), by `BoundaryErrors.window_index` (the last holds all later ones) or `position_bin`; NaN where there
        are fewer than `LEAST_IN_CELL` boundaries.
    """
    sums = np.zeros((2, POSITION_BINS))
    for trial in trials:
        for _, cell in late_cells(trial):
            sums[:, min(int(getattr(cell, along)), POSITION_BINS - 1)] += cell.count, getattr(cell, which)
    return np.where(sums[0] >= LEAST_IN_CELL, sums[1] / np.maximum(sums[0], 1), np.nan)


def late_cells(trial: Trial) -> Iterator[tuple[int, Any]]:
    """(iteration, `BoundaryErrors`) of the late iterations."""
    _, by_iteration = trial.boundary_errors
    first = LATE * len(trial.results)
    for iteration, cells in by_iteration.items():
        if iteration > first:
            for cell in cells:
                yield iteration, cell


def _efficiency(trial: Trial) -> dict[str, float]:
    trained = float(trial.results[-1]["tokens"]["trained"])
    values = {
        "tokens_per_second": trained / trial.training_seconds,
        "slot_occupancy": float(trial.summary["slot_occupancy"]),
        "tokens_per_update": trained / len(trial.results),
    }
    staleness = _of_iterations(trial.results, "staleness", "mean")
    if staleness:
        values["staleness"] = float(np.mean(staleness))
    for part in ("values", "policy", "critic"):
        seconds = _of_iterations(trial.results, "time", part)
        if seconds:
            values[f"{part}_seconds"] = 1000 * sum(seconds) / trained
    return values


def _critic(results: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    late = results[int(LATE * len(results)) :]
    values = {}
    for name in ("explained_variance", "explained_variance_unfinished"):
        found = _of_iterations(late, "critic", name)
        if found:
            values[name] = float(np.mean(found))
    return values


def _of_iterations(results: Sequence[Mapping[str, Any]], group: str, name: str) -> list[float]:
    return [value for result in results if (value := metric(result, group, name)) is not None]
