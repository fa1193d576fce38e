"""What `tppo-rl plan` predicts against what is measured: `tppo-rl bench plan`.

The engine's curve is fitted at some numbers of slots and the learner's costs on made-up fragments. In turn with that
another number of slots samples for real in each mode, and what it sampled is trained for real, one after the other, in
seconds of a core (`tppo_rl.bench.plan_clock`). Seconds per trained token are those of the slower side in async mode, where
each has a core of its own, and the sum of both in the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tppo_rl.bench.plan_engine import EngineBench
from tppo_rl.bench.plan_learner import LearnerBench
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.rollout import SPREAD_LOG
from tppo_rl.core.fragments import Fragment
from tppo_rl.plan.cost_files import write_costs
from tppo_rl.plan.costs import Costs
from tppo_rl.plan.lengths import lognormal
from tppo_rl.plan.predict import Prediction, Workload, predict
from tppo_rl.plan.roofline import shape_of_model
from tppo_rl.plan.windows import MODES, Mode

_UNIT = "µs/token"
_WINDOWED: tuple[Mode, ...] = ("async", "sync")
_WHOLE: tuple[Mode, None] = ("ppo", None)
_WHOLE_MORE = 4
"""Whole responses are sampled for so many times as many tokens: their steps hang on the longest of each batch."""


def plan_figures(
    *,
    model: str,
    slots: int,
    fitted_slots: Sequence[int],
    windows: Sequence[int],
    mean_length: int,
    cap: int,
    batch_tokens: int,
    batches: int,
    threads: int,
    costs_file: Path | None,
    repeats: int,
) -> list[Figure]:
    """Measures what the costs are fitted to and what they predict in turn, `repeats` times over, and compares.

    Args:
        model: Folder, hub id, or name of a shipped model.
        slots: Number of slots that is predicted.
        fitted_slots: Numbers of slots that the engine's curve is fitted at.
        windows: Window lengths, tokens; each in async and in sync mode. Whole responses (PPO) come on top.
        mean_length: Mean of the response lengths before the cap, tokens.
        cap: Longest response, tokens.
        batch_tokens: Sampled tokens of an update in async mode.
        batches: Updates of each measurement in async mode; the others take as many tokens at least.
        threads: Torch threads of each side.
        costs_file: Where to write the costs for `tppo-rl plan --costs`.
        repeats: Rounds of measurements; one fit is made of all of them.

    Raises:
        ValueError: the predicted number of slots is among the fitted ones.
    """
    if slots in fitted_slots:
        raise ValueError(f"fitted_slots={slots} will not do: that is the number of slots to be predicted; fit others")
    engine = EngineBench(model, mean=mean_length, cap=cap, most_slots=max(slots, *fitted_slots), threads=threads)
    learner = LearnerBench(model, threads=threads)
    cases: list[tuple[Mode, int | None]] = [(mode, window) for mode in _WINDOWED for window in windows]
    measured: dict[str, list[float]] = defaultdict(list)
    try:
        for _ in range(repeats):
            engine.measure_steps(fitted_slots)
            for mode, window in [*cases, _WHOLE]:
                several = _WHOLE_MORE * batches if mode == "ppo" else batches
                sampled = engine.sample(mode, window, slots=slots, batch_tokens=batch_tokens, batches=several)
                trained_s = _seconds_per_token(learner, sampled.batches, batches * batch_tokens)
                sides = _Sides(sampled.seconds / sampled.tokens, trained_s)
                for name, seconds in sides.parts(mode, window).items():
                    measured[name].append(seconds)
            learner.measure_passes(batch_tokens)
    finally:
        engine.stop()
    costs = Costs(engine.cost_curve(), learner.costs(), f"{model}, {threads} thread{'s' if threads > 1 else ''}")
    if costs_file is not None:
        write_costs(costs, costs_file)
    workload = Workload(lognormal(mean_length, SPREAD_LOG, cap), slots, engine.prompt_length, batch_tokens)
    predicted: dict[str, float] = {}
    for one in predict(workload, costs, shape_of_model(model), windows):
        predicted |= _Sides(one.generation_s, one.learner_s).parts(one.mode, one.window)
    share = figure_of(
        "plan_core_fraction", [engine.clock.share, learner.clock.share], "measured seconds per wall second"
    )
    return [*plan_errors(predicted, measured), share]


def plan_errors(predicted: Mapping[str, float], measured: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Compares predicted and measured seconds for each trained token.

    Returns for every case what was predicted, what was measured and the relative error to its median; `plan_error` is
    over the cases whose names begin with "total".

    Args:
        predicted: Seconds for each trained token, by case ("total, T-PPO async, window 32").
        measured: Of the same cases, one for each repeat; those of whole runs too, if they were planned.
    """
    errors = {name: abs(predicted[name] / median(seconds) - 1) for name, seconds in measured.items()}
    totals = [error for name, error in errors.items() if name.startswith("total")]
    figures = [figure_of("plan_error", totals, "relative")]
    for name, seconds in measured.items():
        figures += [
            figure_of(f"plan_predicted, {name}", [1e6 * predicted[name]], _UNIT),
            figure_of(f"plan_measured, {name}", [1e6 * one for one in seconds], _UNIT),
            figure_of(f"plan_error, {name}", [errors[name]], "relative"),
        ]
    return figures


def run_errors(
    predictions: Iterable[Prediction], measured: Mapping[tuple[Mode, int | None], Sequence[float]]
) -> list[Figure]:
    """Compares predictions with whole runs, whose sides worked at the same time and waited for each other.

    Args:
        predictions: With the lengths, slots, batch, staleness and costs of the runs.
        measured: Seconds of wall-clock for each trained token, by mode and window; one for each run.

    Raises:
        ValueError: a run has no prediction.
    """
    predicted = {(one.mode, one.window): one.seconds_per_token for one in predictions}
    if missing := sorted(case_name(*case) for case in measured.keys() - predicted.keys()):
        raise ValueError(
            f"measured={', '.join(missing)}: nothing was predicted for it; predict the windows of the runs"
        )
    names = {case: f"total, run, {case_name(*case)}" for case in measured}
    return plan_errors(
        {name: predicted[case] for case, name in names.items()},
        {name: measured[case] for case, name in names.items()},
    )


def _seconds_per_token(learner: LearnerBench, batches: Iterable[Sequence[Fragment]], most_tokens: int) -> float:
    """Trains batches until that many tokens are trained."""
    seconds, tokens = 0.0, 0
    for batch in filter(None, batches):
        if tokens >= most_tokens:
            break
        seconds += learner.seconds(batch)
        tokens += sum(map(len, batch))
    return seconds / tokens


def case_name(mode: Mode, window: int | None) -> str:
    """Returns the name of a mode at a window length."""
    return f"{MODES[mode]}, window {window}" if window is not None else MODES[mode]


@dataclass(frozen=True)
class _Sides:
    """Seconds for each trained token."""

    generation: float
    learner: float

    def parts(self, mode: Mode, window: int | None) -> dict[str, float]:
        """Returns both, and what they come to in a mode, by case."""
        both = max(self.generation, self.learner) if mode == "async" else self.generation + self.learner
        seconds = {"total": both, "generation": self.generation, "learner": self.learner}
        return {f"{name}, {case_name(mode, window)}": one for name, one in seconds.items()}
