"""Time to the same held-out accuracy beside TRL's GRPO: `tppo-rl bench peers`.

    run file ─┬─▶ `peer_tppo`, a process of its own ──▶ weights every so many sampled tokens ─▶ held-out accuracy
              └─▶ `peer_trl`,  a process of its own ──▶ the same                              ─▶ the same code

One side after the other, both on all cores. The clock runs from the beginning of sampling; start-up and evaluation are left
out on both sides. Base model, environment, prompts, reward, temperature, response cap, optimizer and ramp of the learning rate
are those of the run file; group size and batch of TRL are its own, learning rate and passes over a batch where they are given.
The time to the target is interpolated between the two evaluations around it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.config.checks import check_options
from tppo_rl.config.options import OPTIONS
from tppo_rl.config.run_files import load_run_file
from tppo_rl.experiment.learning_curves import reached_after

GENERATION = ("transformers", "continuous_batching", "vllm_colocate", "vllm_server")
"""TRL's ways to generate."""
_SIDES = ("tppo", "trl")
_STOP = "num_env_steps_sampled_lifetime"


class Point(NamedTuple):
    """One evaluation."""

    tokens: int
    """Sampled so far."""
    seconds: float
    """On the side's clock."""
    accuracy: float


@dataclass(frozen=True)
class SideSettings:
    """What one process is told; JSON on its command line."""

    options: dict[str, Any]
    """Of the run, checked, with every default."""
    seed: int
    target: float
    """Held-out accuracy, sampled."""
    limit_tokens: int
    """Sampled tokens after which the side ends."""
    limit_seconds: float
    """Likewise, on its clock."""
    every_tokens: int
    """Sampled tokens between two evaluations."""
    num_prompts: int
    """Of the held-out split."""
    trl: dict[str, Any] = field(default_factory=dict)
    """TRL's own: `num_prompts`, `num_generations`, `minibatch_responses`, `lr`, `iterations`, `generation`, `threads`."""


@dataclass(frozen=True)
class SideResult:
    """What one process reports."""

    startup_seconds: float
    tokens: int
    """Sampled by the end."""
    seconds: float
    """On the clock by the end."""
    points: list[Point]

    @property
    def final_accuracy(self) -> float:
        return self.points[-1].accuracy


def peers_figures(
    *,
    config: Path,
    overrides: Sequence[str],
    target: float,
    every_tokens: int,
    num_prompts: int,
    limit_tokens: int | None,
    limit_seconds: float,
    results: Path,
    trl_prompts: int,
    trl_generations: int,
    trl_minibatch: int,
    trl_lr: float | None,
    trl_iterations: int | None,
    trl_generation: str,
    trl_threads: int | None,
    repeats: int,
) -> list[Figure]:
    """Runs both sides with the seeds 0, 1, … one after another.

    Args:
        config: Run file with one experiment.
        overrides: `key=value` texts for it.
        target: Held-out accuracy, sampled, above 0 and below 1.
        every_tokens: Sampled tokens between two evaluations.
        num_prompts: Held-out prompts.
        limit_tokens: Sampled tokens of a side; None: the run file's.
        limit_seconds: On the clock of a side.
        results: Folder of what the sides report; a side that ended there with the same settings is not run again.
        trl_prompts: Prompts of TRL's batch.
        trl_generations: Responses to each of them.
        trl_minibatch: Responses of a forward and backward pass; each epoch has one optimizer step.
        trl_lr: TRL's highest learning rate; None: the run file's.
        trl_iterations: TRL's passes over a batch; None: the run file's `num_epochs`.
        trl_generation: One of `GENERATION`.
        trl_threads: Torch threads of TRL's process; None: one for each core.
        repeats: Seeds.

    Raises:
        ValueError: TRL is not installed, an option does not do, a side failed, or `results` holds one with other settings.
    """
    check_trl()
    if not 0 < target < 1:
        raise ValueError(f"target={target}: give a share of right answers between 0 and 1, for example 0.8")
    if trl_prompts * trl_generations % trl_minibatch:
        raise ValueError(
            f"trl_minibatch={trl_minibatch}: must divide the {trl_prompts} x {trl_generations} responses of a batch"
        )
    options, stop_tokens = _options(config, overrides)
    trl = {
        "num_prompts": trl_prompts,
        "num_generations": trl_generations,
        "minibatch_responses": trl_minibatch,
        "lr": trl_lr or options["lr"],
        "iterations": trl_iterations or options["num_epochs"],
        "generation": trl_generation,
        "threads": trl_threads or len(os.sched_getaffinity(0)),
    }
    outcomes: dict[str, list[SideResult]] = {side: [] for side in _SIDES}
    for seed in range(repeats):
        for side in _SIDES:
            settings = SideSettings(
                options=options | {"seed": seed},
                seed=seed,
                target=target,
                limit_tokens=limit_tokens or stop_tokens,
                limit_seconds=limit_seconds,
                every_tokens=every_tokens,
                num_prompts=num_prompts,
                trl=trl if side == "trl" else {},
            )
            outcomes[side].append(run_side(side, settings, results))
    return figures_of(outcomes, target)


def check_trl() -> None:
    """Raises ValueError if TRL, which nothing else needs, is not installed."""
    if find_spec("trl") is None:
        raise ValueError("trl is not installed, and the comparison is with it: pip install 'trl==1.16.*'")


def run_side(side: str, settings: SideSettings, results: Path) -> SideResult:
    """Runs one side in a process of its own, unless it has ended in an earlier call with these settings.

    Args:
        side: "tppo" or "trl".
        settings: Of the side.
        results: Folder, made where it is missing. It gets `SIDE-seedN.json` and the settings beside it.

    Raises:
        ValueError: the side failed (the end of what it wrote to standard error says why), or the folder holds its result
            with other settings.
    """
    results.mkdir(parents=True, exist_ok=True)
    out = results / f"{side}-seed{settings.seed}.json"
    told, text = out.with_suffix(".settings.json"), json.dumps(asdict(settings))
    if out.exists():
        if not told.exists() or told.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"results={str(results)!r}: {out.name} is of other settings; give another folder or remove it"
            )
        return read_result(out)
    told.write_text(text, encoding="utf-8")
    command = [sys.executable, "-m", f"tppo_rl.bench.peer_{side}", text, str(out)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise ValueError(f"{side} ended with exit code {run.returncode}:\n{run.stderr[-3000:]}")
    return read_result(out)


def write_result(result: SideResult, path: Path) -> None:
    """Writes what `read_result` reads; a file under that name is always whole."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(result)), encoding="utf-8")
    part.replace(path)


def read_result(path: Path) -> SideResult:
    """The result of a side's process."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return SideResult(**(content | {"points": [Point(*point) for point in content["points"]]}))


def read_settings(text: str) -> SideSettings:
    """The settings on a process's command line."""
    return SideSettings(**json.loads(text))


def time_to_accuracy(points: Sequence[Point], target: float) -> float | None:
    """Seconds until the target is first reached, linear between evaluations; None if it never is.

    Args:
        points: In the order of time.
        target: Accuracy.
    """
    seconds = reached_after([point.accuracy for point in points], [point.seconds for point in points], target)
    return None if math.isnan(seconds) else seconds


def figures_of(results: Mapping[str, Sequence[SideResult]], target: float) -> list[Figure]:
    """Figures and records of all seeds; a time that was not reached is a bound and is called one."""
    tppo, trl = ([time_to_accuracy(result.points, target) for result in results[side]] for side in _SIDES)
    figures: list[Figure] = []
    pairs = list(zip(tppo, trl, strict=True))
    if all(ours is not None and theirs is not None for ours, theirs in pairs):
        figures.append(figure_of("speedup_vs_trl", [theirs / ours for ours, theirs in pairs], "times"))  # type: ignore[operator]
    elif all(ours is not None for ours in tppo):
        bounds = [
            (result.seconds if theirs is None else theirs) / ours  # type: ignore[operator]
            for ours, theirs, result in zip(tppo, trl, results["trl"], strict=True)
        ]
        figures.append(figure_of("speedup_vs_trl_at_least", bounds, f"times, TRL did not reach {target:g}"))
    for side, times in zip(_SIDES, (tppo, trl), strict=True):
        figures += _side_figures(side, results[side], times, target)
    return figures


def _side_figures(
    side: str, results: Sequence[SideResult], times: Sequence[float | None], target: float
) -> list[Figure]:
    figures = []
    if None not in times:
        figures.append(figure_of(f"seconds_to_accuracy_{target:g}, {side}", [time or 0.0 for time in times], "s"))
    else:
        bounds = [result.seconds if time is None else time for result, time in zip(results, times, strict=True)]
        figures.append(figure_of(f"seconds_to_accuracy_{target:g}_at_least, {side}", bounds, "s, not all reached it"))
    return [
        *figures,
        figure_of(f"accuracy_before, {side}", [result.points[0].accuracy for result in results], "share"),
        figure_of(f"final_accuracy, {side}", [result.final_accuracy for result in results], "share"),
        figure_of(f"tokens_per_second, {side}", [r.tokens / r.seconds for r in results], "tokens/s end to end"),
        figure_of(f"sampled_tokens, {side}", [float(result.tokens) for result in results], "tokens by the end"),
        figure_of(f"seconds, {side}", [result.seconds for result in results], "s by the end"),
        figure_of(f"startup_seconds, {side}", [result.startup_seconds for result in results], "s, not counted"),
    ]


def _options(config: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Every option of the run file's first experiment, and its limit of sampled tokens."""
    experiment, *_ = load_run_file(config, overrides)
    if experiment.is_sweep:
        raise ValueError(f"config={str(config)!r}: give a run file whose first experiment is without grids")
    (point,) = experiment.points()
    if experiment.run != "TPPO":
        raise ValueError(f"{experiment.name}.run={experiment.run!r}: the comparison is of TPPO")
    if _STOP not in experiment.stop:
        raise ValueError(f"{experiment.name}.stop={experiment.stop!r}: give {_STOP}, the tokens of a side")
    options = check_options(point, experiment.spec, other_keys=point)
    rewards = options.rewards
    if (
        not rewards.rewards.is_environment
        or rewards.overlong_fraction is not None
        or rewards.truncated_responses != "score"
    ):
        raise ValueError(
            f"rewards={rewards.rewards.flat()!r}, overlong_fraction={rewards.overlong_fraction!r}, "
            f"truncated_responses={rewards.truncated_responses!r}: TRL's side is given the environment's rewards; leave them at "
            "their defaults"
        )
    unset = {"evaluation_interval": None, "evaluation_interval_unit": OPTIONS["evaluation_interval_unit"].default}
    return point | options.flat() | unset, int(experiment.stop[_STOP])
