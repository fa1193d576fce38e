"""Folders of sweeps as the real writers leave them, with numbers that a test has chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tppo_rl.core.boundaries import Boundary, ClosedBoundary
from tppo_rl.experiment.result_log import ResultLog
from tppo_rl.experiment.summary import summarize, write_summary
from tppo_rl.observability.boundary_errors import append_boundary_errors, sum_boundary_errors

ITERATIONS = 8
TOKENS = 1000
"""Sampled in an iteration, and trained."""
WINDOW_TASK = {"policy_model": "tppo_rl/arithmetic-chain", "max_response_length": 320, "lr": 1e-4}


def evaluation(accuracy: float) -> dict[str, dict[str, float]]:
    values = {"accuracy": accuracy, "response_length_mean": 30.0, "standard_error": 0.01, "n": 512.0}
    return {"sampled": values, "greedy": values}


def write_results(
    folder: Path,
    *,
    final: float,
    speed: float,
    window: int = 32,
    step_error: float = 0.1,
    evaluate_at_the_end: bool = True,
    seed: int = 0,
) -> None:
    """A run that has ended: `result.json`, `progress.csv`, `summary.json`, `boundary_errors.jsonl`.

    Accuracy rises linearly from 0.2 to `final`, and is measured every second iteration and at the end.

    Args:
        folder: Of the run; made here.
        final: Accuracy at the end.
        speed: Trained tokens a second.
        window: Its ends are where values err.
        step_error: |V(s_l) - V(s_(l-1))|, reward.
        evaluate_at_the_end: Else the last evaluation is one iteration old, as Tune leaves it.
        seed: Of the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    log = ResultLog(folder)
    latest: dict[str, Any] = {}
    for iteration in range(1, ITERATIONS + 1):
        accuracy = 0.2 + (final - 0.2) * iteration / ITERATIONS
        evaluated = iteration % 2 == (0 if evaluate_at_the_end else 1)
        latest = evaluation(accuracy) if evaluated else latest
        tokens = iteration * TOKENS
        result = {
            "training_iteration": iteration,
            "mode": "async",
            "seed": seed,
            "tokens": {"sampled": tokens, "trained": tokens, "queued": 0, "in_flight": 0, "dropped": 0}
            | {"dropped_by_reason": {}},
            "heldout_before": evaluation(0.2),
            "heldout_latest": latest,
            "run": run_accounts(tokens / speed),
            "staleness": {"mean": 1.5},
            "time": {"values": 0.1, "policy": 0.3, "critic": 0.2},
            "critic": {"explained_variance": 0.1 * iteration, "explained_variance_unfinished": 0.05 * iteration},
        }
        log.append(result | ({"evaluation": latest} if evaluated else {}))
        boundaries = [
            ClosedBoundary(index, Boundary(0.5, 0.5 + step_error, 0.5), 1.0, window * (index + 1), episode_id=0)
            for index in range(min(4, 320 // window - 1))
            for _ in range(6)
        ]
        append_boundary_errors(folder, iteration, 10, sum_boundary_errors(boundaries, 10))
    write_summary(folder, summarize(result, latest))


def run_accounts(training_s: float) -> dict[str, Any]:
    """What a result says of the run so far, with 5 s of start-up and 2 s of evaluations on top of the training."""
    return {
        "slot_occupancy_lifetime": 0.99,
        "wall_s": training_s + 7.0,
        "seconds": {"setup": 5.0, "evaluation": 2.0, "update": 0.6 * training_s},
        "largest_staleness": 2,
        "largest_fresh_log_prob_diff": 1e-7,
        "largest_ratio_deviation": 1e-6,
    }


def write_trial(sweep: Path, index: int, options: Mapping[str, Any], **results: Any) -> Path:
    """A trial as Tune leaves it, with `params.json`."""
    folder = sweep / f"TPPO_ArithmeticChain-v0_1a2b3_{index:05d}_{index}_window_length=x_2026-01-01_00-00-00"
    write_results(folder, seed=int(options["seed"]), **results)
    (folder / "params.json").write_text(json.dumps(options), encoding="utf-8")
    return folder


def write_window_sweep(
    sweep: Path, finals: Mapping[int, Sequence[float]], speeds: Mapping[int, float] | None = None
) -> Path:
    """A grid over window lengths.

    Args:
        sweep: Its folder.
        finals: Accuracy at the end by window, one for each seed.
        speeds: Trained tokens a second by window; shorter ones are faster if left out.
    """
    index = 0
    for window, values in finals.items():
        for seed, final in enumerate(values):
            options = WINDOW_TASK | {"window_length": window, "seed": seed, "env": "tppo_rl/ArithmeticChain-v0"}
            speed = (speeds or {}).get(window, 100.0 + 3200.0 / window) * (1 + 0.02 * seed)
            write_trial(sweep, index, options, final=final, speed=speed, window=window)
            index += 1
    return sweep


def write_comparison(folder: Path, experiments: Mapping[str, Mapping[str, Any]], finals: Sequence[float]) -> Path:
    """A folder of `tppo-rl compare`, one run for each experiment and final accuracy."""
    for place, (name, config) in enumerate(experiments.items()):
        for seed, final in enumerate(finals):
            run = folder / f"{name}-seed{seed}"
            write_results(run, final=final, speed=100.0, step_error=0.1 * (place + 1), seed=seed)
            body = {
                "run": "TPPO",
                "env": "tppo_rl/ArithmeticChain-v0",
                "stop": {"training_iteration": 8},
                "config": WINDOW_TASK | {"window_length": 32, "seed": seed} | dict(config),
            }
            (run / "options.json").write_text(json.dumps(body), encoding="utf-8")
    return folder
