"""What `tppo-rl plan` predicts against what is measured: `tppo-rl bench plan`.

The engine's curve is fitted at some numbers of slots and the learner's on made-up fragments; then another number of slots
samples for real in each mode, and what it sampled is trained for real. Sides are measured one after the other, in seconds
of a core (`tppo_rl.bench.plan_clock`). Seconds per trained token are the slower side's in async mode, where each has a core
of its own, and the sum of both in the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from tppo_rl.bench.plan_engine import EngineBench
from tppo_rl.bench.plan_learner import LearnerBench
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.rollout import SPREAD_LOG
from tppo_rl.plan.costs import Costs, write_costs
from tppo_rl.plan.lengths import lognormal
from tppo_rl.plan.predict import Prediction, Workload, predict
from tppo_rl.plan.roofline import shape_of_model
from tppo_rl.plan.windows import MODES, Mode

_CASES_UNIT = "µs/token"


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
    """Fits and measures, `repeats` times over, and compares.

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
        costs_file: Where to write the costs of the last fit for `tppo-rl plan --costs`.
        repeats: Fits, each with measurements of its own.

    Raises:
        ValueError: the predicted number of slots is among the fitted ones.
    """
    if slots in fitted_slots:
        raise ValueError(f"fitted_slots={slots} will not do: that is the number of slots to be predicted; fit others")
    engine = EngineBench(model, mean=mean_length, cap=cap, most_slots=max(slots, *fitted_slots), threads=threads)
    learner = LearnerBench(model, threads=threads)
    lengths = lognormal(mean_length, SPREAD_LOG, cap)
    predicted: dict[str, list[float]] = defaultdict(list)
    measured: dict[str, list[float]] = defaultdict(list)
    try:
        for _ in range(repeats):
            curve, prompt_length = engine.cost_curve(fitted_slots)
            costs = Costs(curve, learner.costs(batch_tokens), f"{model}, {threads} thread{'s' if threads > 1 else ''}")
            workload = Workload(lengths, slots, prompt_length, batch_tokens)
            for one in predict(workload, costs, shape_of_model(model), windows):
                case = case_name(one.mode, one.window)
                for part, seconds in _parts(one.mode, _Sides(one.generation_s, one.learner_s)).items():
                    predicted[f"{part}, {case}"].append(seconds)
                sides = _measure(engine, learner, one, slots, batch_tokens, batches)
                for part, seconds in _parts(one.mode, sides).items():
                    measured[f"{part}, {case}"].append(seconds)
    finally:
        engine.stop()
    if costs_file is not None:
        write_costs(costs, costs_file)
    share = figure_of("plan_core_share", [engine.clock.share, learner.clock.share], "measured seconds per wall second")
    return [*plan_errors(predicted, measured), share]


def plan_errors(predicted: Mapping[str, Sequence[float]], measured: Mapping[str, Sequence[float]]) -> list[Figure]:
    """Compares predicted and measured seconds for each trained token.

    Returns for every case what was predicted, what was measured and the relative error of the medians; `plan_error` is
    over the cases whose names begin with "total".

    Args:
        predicted: Seconds for each trained token, by case ("total, T-PPO async, window 32"), one for each repeat.
        measured: The same; those of whole runs too, if they were planned.
    """
    errors = {name: abs(median(predicted[name]) / median(seconds) - 1) for name, seconds in measured.items()}
    figures = [figure_of("plan_error", [errors[name] for name in errors if name.startswith("total")], "relative")]
    for name, seconds in measured.items():
        figures += [
            figure_of(f"plan_predicted, {name}", [1e6 * one for one in predicted[name]], _CASES_UNIT),
            figure_of(f"plan_measured, {name}", [1e6 * one for one in seconds], _CASES_UNIT),
            figure_of(f"plan_error, {name}", [errors[name]], "relative"),
        ]
    return figures


def case_name(mode: Mode, window: int | None) -> str:
    """Returns the name of a mode at a window length."""
    return f"{MODES[mode]}, window {window}" if window is not None else MODES[mode]


@dataclass(frozen=True)
class _Sides:
    """Seconds for each trained token."""

    generation: float
    learner: float


def _parts(mode: Mode, sides: _Sides) -> dict[str, float]:
    both = max(sides.generation, sides.learner) if mode == "async" else sides.generation + sides.learner
    return {"total": both, "generation": sides.generation, "learner": sides.learner}


def _measure(
    engine: EngineBench, learner: LearnerBench, case: Prediction, slots: int, batch_tokens: int, batches: int
) -> _Sides:
    sampled = engine.sample(case.mode, case.window, slots=slots, batch_tokens=batch_tokens, batches=batches)
    trained = [batch for batch in sampled.batches if batch]
    seconds = sum(learner.seconds(batch) for batch in trained)
    return _Sides(sampled.seconds / sampled.tokens, seconds / sampled.tokens)
