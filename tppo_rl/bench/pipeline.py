"""Asynchronous T-PPO against synchronous PPO, end to end: `tppo-rl bench pipeline`.

Every experiment of a run file is run once for each seed, seed by seed, so that the sides of a pair stand next to each
other in time. Compared is the training time until a held-out accuracy was reached (evaluations and start-up left out), and
the part of it in which the env-runners were sampling. `overlap_cost` is measured on the quickstart's pipeline, see `overlap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tppo_rl.configs
from tppo_rl.bench.overlap import overlap_figures
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.time_to_accuracy import Progress, plot_progress, read_progress
from tppo_rl.config.run_files import Experiment, load_run_file
from tppo_rl.experiment.learning_curves import reached_after
from tppo_rl.experiment.result_log import read_results
from tppo_rl.experiment.summary import read_summary
from tppo_rl.tune.comparison import compare

PIPELINE = Path(tppo_rl.configs.__file__).with_name("pipeline.yaml")
QUICKSTART = PIPELINE.with_name("quickstart.yaml")


def pipeline_figures(
    *, config: Path | None, overrides: Sequence[str], results: Path, target: float, overlap_updates: int, repeats: int
) -> list[Figure]:
    """Runs the experiments and compares each with the PPO among them.

    Args:
        config: Run file; None is the one that is shipped. One experiment must have `run: PPO`; the first one is the T-PPO
            that the fixed names speak of.
        overrides: "key=value", of all experiments.
        results: Folder of the runs; those in it that have ended are not repeated. `accuracy_over_time.png` is drawn there.
        target: Held-out accuracy, sampled, share.
        overlap_updates: Updates of each of the three measurements of `overlap_cost`; 0 leaves them out.
        repeats: Seeds 0, 1, ….

    Raises:
        ValueError: there is no PPO in the file, or `target` is no share.
    """
    if not 0 < target < 1:
        raise ValueError(f"target={target}: give the accuracy to reach as a share, for example 0.9")
    experiments = load_run_file(config or PIPELINE, overrides)
    baseline = next((experiment.name for experiment in experiments if experiment.run == "PPO"), None)
    if baseline is None or experiments[0].run == "PPO":
        raise ValueError(
            f"config={config}: give a file whose first experiment is to be compared with one of `run: PPO`"
        )
    overlap: list[Figure] = []
    if overlap_updates:
        (quickstart,) = load_run_file(QUICKSTART, ())
        overlap = overlap_figures(quickstart, updates=overlap_updates, repeats=repeats)
    for seed in range(repeats):
        folders = compare(experiments, results, seeds=[seed])
    folders = {name: [results / f"{name}-seed{seed}" for seed in range(repeats)] for name in folders}
    figures = [figure for name, runs in folders.items() for figure in _of_experiment(name, runs, target)]
    progress = {name: [read_progress(folder) for folder in runs] for name, runs in folders.items()}
    plot_progress(progress, target, results / "accuracy_over_time.png")
    pauses = [_pause_share(folder) for folder in folders[experiments[0].name]]
    return [
        *_speedups(experiments, progress, baseline, target),
        *overlap,
        figure_of("sync_pause_fraction", pauses, "share of the training time"),
        *figures,
    ]


def _speedups(
    experiments: Sequence[Experiment], progress: Mapping[str, Sequence[Progress]], baseline: str, target: float
) -> list[Figure]:
    figures = []
    for index, experiment in enumerate(experiments):
        if experiment.name == baseline:
            continue
        suffix = "" if index == 0 else f", {experiment.name}"
        pairs = list(zip(progress[baseline], progress[experiment.name], strict=True))
        for name, of in (("speedup_vs_sync_ppo", "seconds"), ("generation_speedup_vs_sync_ppo", "generation_seconds")):
            ratios = [_spent(theirs, of, target) / _spent(ours, of, target) for theirs, ours in pairs]
            figures += _reached(f"{name}{suffix}", ratios, "times")
    return figures


def _spent(progress: Progress, of: str, target: float) -> float:
    return reached_after(progress.accuracy, getattr(progress, of), target)


def _reached(name: str, values: Sequence[float], unit: str) -> list[Figure]:
    """One figure, or none where a repeat has not reached the target: the fast ones alone would flatter."""
    return [figure_of(name, values, unit)] if all(map(math.isfinite, values)) else []


def _of_experiment(name: str, folders: Sequence[Path], target: float) -> list[Figure]:
    progress = [read_progress(folder) for folder in folders]
    results = [read_results(folder) for folder in folders]
    summaries = [read_summary(folder) for folder in folders]
    seconds = [float(run.seconds[-1]) for run in progress]

    def each(figure: str, values: Sequence[float], unit: str) -> Figure:
        return figure_of(f"{figure}, {name}", values, unit)

    def share(part: str) -> list[float]:
        return [_seconds(run[-1], part) / total for run, total in zip(results, seconds, strict=True)]

    return [
        *_reached(f"seconds_to_{target}, {name}", [_spent(run, "seconds", target) for run in progress], "s"),
        *_reached(
            f"generation_seconds_to_{target}, {name}",
            [_spent(run, "generation_seconds", target) for run in progress],
            "s",
        ),
        *_reached(f"tokens_to_{target}, {name}", [_spent(run, "tokens", target) for run in progress], "tokens"),
        *_reached(
            f"updates_to_{target}, {name}",
            [_updates(run, at, target) for run, at in zip(results, progress, strict=True)],
            "updates",
        ),
        each("final_accuracy", [summary["heldout_accuracy_after"] for summary in summaries], "share"),
        each("tokens_per_second", [run.tokens[-1] / run.seconds[-1] for run in progress], "tokens/s"),
        each("occupancy", [summary["slot_occupancy"] for summary in summaries], "share"),
        each("waiting_for_fragments", share("waiting_for_fragments"), "share of the time"),
        each("updating", share("update"), "share of the time"),
        each("env_runner_idle", share("env_runner_idle"), "share of the time"),
        each(
            "processed_per_trained_token",
            [float(np.mean([_learner(result, "processed_per_trained_token") for result in run])) for run in results],
            "positions/token",
        ),
    ]


def _pause_share(folder: Path) -> float:
    """Share of the training time in which the engine stood still for weights."""
    return _seconds(read_results(folder)[-1], "env_runner_weights") / float(read_progress(folder).seconds[-1])


def _updates(results: Sequence[Mapping[str, Any]], progress: Progress, target: float) -> float:
    tokens = reached_after(progress.accuracy, progress.tokens, target)
    sampled = [0.0, *(float(result["tokens"]["sampled"]) for result in results)]
    return float(np.interp(tokens, sampled, np.arange(len(sampled)))) if math.isfinite(tokens) else math.nan


def _seconds(result: Mapping[str, Any], part: str) -> float:
    return float(result["run"]["seconds"].get(part, 0.0))


def _learner(result: Mapping[str, Any], metric: str) -> float:
    return float(result["learners"]["default_policy"][metric])
