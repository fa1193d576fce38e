"""Runs one experiment from start to summary: build, train, checkpoint, evaluate, write."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from tppo_rl.config.checks import check_options
from tppo_rl.config.run_files import Experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.core.result_keys import check_limits, lookup
from tppo_rl.experiment.display import RunDisplay, memory_table, sizes_table
from tppo_rl.experiment.result_log import ResultLog
from tppo_rl.experiment.summary import summarize, summary_table, write_summary
from tppo_rl.plan.memory import check_memory, machine_memory, memory_of

CHECKPOINTS = "checkpoints"
FIGURE = "accuracy.png"


def run_experiment(
    experiment: Experiment, results: Path, *, resume: bool = False, console: Console | None = None
) -> dict[str, Any]:
    """Runs an experiment that is one trial and returns its summary.

    Args:
        experiment: checked, without a grid.
        results: folder that holds one folder for each experiment.
        resume: go on from the newest checkpoint of the experiment's folder.
        console: where to report; None is standard output.

    Raises:
        OptionError: nothing to resume from, or a stop key that no result has.
    """
    console = console or Console()
    folder = (results / experiment.name).resolve()
    checkpoint = newest_checkpoint(folder) if resume else None
    if not resume:
        _set_aside(folder, console)
    folder.mkdir(parents=True, exist_ok=True)
    (options,) = experiment.points()
    checked = check_options(options, experiment.spec, other_keys=options)
    quiet_libraries()
    console.print(sizes_table(checked))
    memory, available = memory_of(checked), machine_memory()
    console.print(memory_table(memory, available))
    check_memory(memory, checked, available)
    algorithm = build_algorithm(experiment, options, folder)
    try:
        if checkpoint is not None:
            algorithm.load_checkpoint(str(checkpoint))
            console.print(f"resumed from {checkpoint}", soft_wrap=True, highlight=False)
        return _train(algorithm, experiment, folder, console)
    finally:
        algorithm.stop()


def newest_checkpoint(folder: Path) -> Path:
    """The newest complete checkpoint of a run's folder.

    Raises:
        OptionError: there is none.
    """
    checkpoints = sorted((folder / CHECKPOINTS).glob("iteration_*"))
    if not checkpoints:
        raise OptionError(f"--resume: {folder} holds no checkpoint; leave --resume out to begin anew")
    return checkpoints[-1]


def quiet_libraries() -> None:
    """Keeps Ray and RLlib from drowning a run's own lines; warnings and errors of ours still come through."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="ray")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    for name in ("ray", "ray.rllib", "ray.tune", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)


def start_ray() -> None:
    """Starts Ray on this machine, or joins the cluster that `RAY_ADDRESS` names, unless it runs already."""
    import ray

    if not ray.is_initialized():
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def build_algorithm(experiment: Experiment, options: Mapping[str, Any], folder: Path) -> Any:
    """Returns the algorithm of an experiment, started, with its engines; stop it in the end.

    Args:
        experiment: Checked.
        options: One point of its grid.
        folder: Of its results.
    """
    from tppo_rl.algorithms.rllib_classes import rllib_classes

    start_ray()
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    algorithm, config_type = rllib_classes(experiment.spec)
    config = config_type().update_from_dict(dict(options))
    config.results_folder = str(folder)
    return algorithm(config=config)


def _train(algorithm: Any, experiment: Experiment, folder: Path, console: Console) -> dict[str, Any]:
    """Trains until a limit is reached or Ctrl-C; both save a checkpoint and write the summary."""
    every = experiment.checkpoint_config.checkpoint_frequency
    log = ResultLog(folder)
    with RunDisplay(console, experiment.name, experiment.stop) as display, _interruptible(display) as interrupted:
        while True:
            result = algorithm.train()
            log.append(result)
            display.show(result)
            check_limits(result, experiment.stop, f"{experiment.name}.stop")
            ended = _limit_reached(result, experiment.stop) or interrupted()
            iteration = result["training_iteration"]
            if ended or (every and iteration % every == 0):
                saved = _save(algorithm, experiment, folder, iteration, forced=interrupted())
            if ended:
                break
    evaluation = result.get("evaluation") or algorithm.evaluate()
    summary = summarize(result | {"run": algorithm.run_totals()}, evaluation)
    write_summary(folder, summary)
    _plot(folder)
    console.print(summary_table(summary, folder))
    if saved is not None:
        console.print(f"checkpoint: {saved} (go on with --resume)", soft_wrap=True, highlight=False)
    return summary


def _plot(folder: Path) -> None:
    from tppo_rl.experiment.plots import plot_runs

    plot_runs([folder], folder / FIGURE)


def _save(algorithm: Any, experiment: Experiment, folder: Path, iteration: int, *, forced: bool) -> Path | None:
    """Saves a checkpoint whole or not at all, and removes those beyond `num_to_keep`."""
    config = experiment.checkpoint_config
    at_end = config.checkpoint_at_end or forced or bool(config.checkpoint_frequency)
    if not at_end:
        return None
    target = folder / CHECKPOINTS / f"iteration_{iteration:06d}"
    partial = target.with_name(f"partial_{target.name}")
    shutil.rmtree(partial, ignore_errors=True)
    algorithm.save_to_path(str(partial))
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    if config.num_to_keep is not None:
        for old in sorted(target.parent.glob("iteration_*"))[: -config.num_to_keep]:
            shutil.rmtree(old)
    return target


def _limit_reached(result: Mapping[str, Any], stop: Mapping[str, float]) -> bool:
    return any((value := lookup(result, key)) is not None and value >= limit for key, limit in stop.items())


def _set_aside(folder: Path, console: Console) -> None:
    """Renames the folder of an earlier run, so that nothing is overwritten."""
    if folder.exists() and any(folder.iterdir()):
        stamp = datetime.fromtimestamp(folder.stat().st_mtime).strftime("%Y%m%d-%H%M%S")
        target = folder.with_name(f"{folder.name}-{stamp}")
        while target.exists():
            target = target.with_name(f"{target.name}x")
        folder.rename(target)
        console.print(f"the earlier run is kept in {target}", soft_wrap=True, highlight=False)


@contextmanager
def _interruptible(display: RunDisplay) -> Iterator[Any]:
    """Turns the first Ctrl-C into a request to stop after the iteration; a second one interrupts at once."""
    asked_at: list[float] = []

    def ask(signum: int, frame: FrameType | None) -> None:
        if asked_at:
            raise KeyboardInterrupt
        asked_at.append(time.monotonic())
        display.message("Ctrl-C: saving a checkpoint after this iteration (again: stop at once)")

    previous = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked_at)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
