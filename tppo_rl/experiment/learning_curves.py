"""When a learning curve reached an accuracy. Between two evaluations accuracy is taken as linear."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tppo_rl.experiment.result_log import read_results
from tppo_rl.experiment.summary import read_summary


def reached_after(accuracy: Sequence[float] | np.ndarray, spent: Sequence[float] | np.ndarray, target: float) -> float:
    """Returns what was spent when accuracy first reached `target`, nan where it never did.

    Args:
        accuracy: [N], at evaluations.
        spent: [N], rising: seconds or tokens.
        target: Share.
    """
    reached = np.flatnonzero(np.asarray(accuracy) >= target)
    if len(reached) == 0:
        return float("nan")
    after = int(reached[0])
    if after == 0:
        return float(spent[0])
    between = [after - 1, after]
    return float(np.interp(target, np.asarray(accuracy)[between], np.asarray(spent)[between]))


def known(value: float | None) -> float:
    """A number for figures and means: nan where there is none, as of accuracy where an environment does not say."""
    return float("nan") if value is None else value


def evaluation_points(results: Sequence[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
    """(sampled tokens, evaluation) before the first update and wherever a result holds an evaluation."""
    points = [(0, results[0]["heldout_before"])] if results[0]["heldout_before"] else []
    points += [(int(result["tokens"]["sampled"]), result["evaluation"]) for result in results if "evaluation" in result]
    return points


class CurvePoint(NamedTuple):
    """One evaluation of a run."""

    sampled_tokens: int
    accuracy: float
    """Fraction of held-out prompts answered right at the training temperature; nan where the environment does not say."""
    accuracy_greedy: float
    response_length: float
    """Mean, tokens, at the training temperature."""


def learning_curve(folder: Path) -> list[CurvePoint]:
    """The evaluations of a run that has ended, the first before any update, the last after all of them."""
    results, summary = read_results(folder), read_summary(folder)
    points = [
        CurvePoint(
            tokens,
            known(evaluation["sampled"].get("accuracy")),
            known(evaluation["greedy"].get("accuracy")),
            evaluation["sampled"]["response_length_mean"],
        )
        for tokens, evaluation in evaluation_points(results)
    ]
    end = CurvePoint(
        summary["tokens"]["sampled"],
        known(summary["heldout_accuracy_after"]),
        known(summary["heldout_accuracy_after_greedy"]),
        summary["heldout_response_length_after"],
    )
    return points if points and points[-1].sampled_tokens >= end.sampled_tokens else [*points, end]
