"""Sweeps on Ray Tune: grids, ranges and seeds of a run file as trials that queue for the machine's resources."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.search import BasicVariantGenerator
from rich.console import Console

from tppo_rl.algorithms.ray_start import quiet_libraries, start_ray
from tppo_rl.algorithms.rllib_classes import rllib_classes
from tppo_rl.config.run_files import Experiment
from tppo_rl.config.sweep_options import compared_metric
from tppo_rl.core.errors import OptionError
from tppo_rl.core.storage import Storage
from tppo_rl.experiment.summary import summarize, write_summary
from tppo_rl.tune.progress import SweepProgress
from tppo_rl.tune.resources import check_fit
from tppo_rl.tune.resume import (
    TrimCallback,
    check_definition,
    mark_ended_trials,
    write_definition,
)
from tppo_rl.tune.spaces import make_scheduler, make_searcher, param_space
from tppo_rl.tune.sweep_place import SweepPlace
from tppo_rl.tune.tune_internals import STATE_FILES, SchedulerMemory

_TUNE_SETTINGS = {
    # After a kill no more is unknown than what happened in the last second.
    "TUNE_GLOBAL_CHECKPOINT_S": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # Metrics are checked by name before the start; an iteration in which no episode ended has no mean return.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # Tune's own tables beside the live one.
    "RAY_AIR_NEW_OUTPUT": "0",
}


class SummaryCallback(Callback):
    """Writes `summary.json` into the folder of every trial that ends."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Summarizes the trial's last result; its last evaluation is the newest that it made."""
        result = trial.last_result
        if result and "run" in result:
            write_summary(Path(trial.local_path), summarize(result, result["heldout_latest"]))


def run_trials(
    experiment: Experiment, results: Path | Storage, *, resume: bool = False, console: Console | None = None
) -> tune.ResultGrid:
    """Runs a sweep.

    Args:
        experiment: checked.
        results: folder that holds one folder for each experiment. Tune writes there, also at a URI.
        resume: go on with the unfinished trials of the experiment's folder, each from its newest checkpoint.
        console: where to report; None is standard output.

    Raises:
        OptionError: a trial would never fit the machine, nothing to resume or something else, or the folder of an earlier
            sweep would be overwritten.
    """
    console = console or Console()
    place = SweepPlace(results, experiment.name)
    quiet_libraries()
    os.environ.update({name: os.environ.get(name, value) for name, value in _TUNE_SETTINGS.items()})
    trainable, _ = rllib_classes(experiment.spec)
    place.check_writable()
    if resume and not tune.Tuner.can_restore(place.path, storage_filesystem=place.filesystem):
        raise OptionError(f"--resume: {place} holds no sweep; leave --resume out to begin anew")
    if resume:
        with place.files() as folder:
            check_definition(experiment, folder, str(place))
            has_begun = any(folder.glob(STATE_FILES))
        if not has_begun:
            # Killed before its first trial: there is nothing to go on with, and nothing to lose.
            place.remove()
            resume = False
    elif place.is_in_use():
        raise OptionError(f"{experiment.name}: {place} holds an earlier sweep; go on with --resume, or move it away")
    needs = check_fit(experiment, trainable)
    if resume:
        with place.files() as folder:
            mark_ended_trials(folder)
        console.print(f"{experiment.name}: {place.num_ended()} trials have ended before", highlight=False)
        console.print(needs)
        start_ray(experiment.options().get("runtime_env"))
        tuner = tune.Tuner.restore(
            place.path,
            trainable,
            resume_unfinished=True,
            restart_errored=True,
            storage_filesystem=place.filesystem,
        )
    else:
        tuner = make_tuner(experiment, trainable, results, console=console)
        console.print(needs)
        with place.files() as folder:
            write_definition(experiment, folder)
        start_ray(experiment.options().get("runtime_env"))
    grid = tuner.fit()
    _report_end(experiment, grid, place, console)
    return grid


def sweep_callbacks(stop: Mapping[str, float], num_trials: int, *, console: Console | None = None) -> list[Callback]:
    """What a Tuner needs for summaries, clean curves after a kill, and the live table.

    Args:
        stop: limits by result key.
        num_trials: of the sweep.
        console: where to report; None is standard output.
    """
    return [TrimCallback(), SummaryCallback(), SweepProgress(stop, num_trials, console)]


def make_tuner(
    experiment: Experiment, trainable: Any, results: Path | Storage, *, console: Console | None = None
) -> tune.Tuner:
    """The Tuner of an experiment.

    Raises:
        OptionError: the scheduler, the searcher or a range refuses its arguments.
    """
    checkpoints, tune_config = experiment.checkpoint_config, experiment.tune_config
    scheduler, searcher = make_scheduler(experiment), make_searcher(experiment)
    is_stored = isinstance(results, Storage)
    limits_itself = isinstance(searcher, BasicVariantGenerator)
    return tune.Tuner(
        trainable,
        param_space=param_space(experiment.options()),
        tune_config=tune.TuneConfig(
            num_samples=experiment.samples,
            metric=compared_metric(tune_config, experiment.options()),
            mode=tune_config.mode,
            scheduler=scheduler,
            search_alg=searcher,
            max_concurrent_trials=None if limits_itself else tune_config.max_concurrent_trials,
            time_budget_s=tune_config.time_budget_s,
        ),
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=results.path if isinstance(results, Storage) else str(results.resolve()),
            storage_filesystem=results.filesystem if isinstance(results, Storage) else None,
            # What a trial writes beside its checkpoints: on a disk that it sees, it writes to its folder itself.
            sync_config=tune.SyncConfig(sync_artifacts=is_stored, sync_artifacts_on_checkpoint=is_stored),
            stop=dict(experiment.stop),
            failure_config=tune.FailureConfig(max_failures=experiment.max_failures),
            callbacks=[
                SchedulerMemory(scheduler),
                *sweep_callbacks(experiment.stop, experiment.num_trials, console=console),
            ],
            verbose=0,
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=checkpoints.checkpoint_frequency,
                checkpoint_at_end=checkpoints.checkpoint_at_end,
                num_to_keep=experiment.checkpoints_to_keep,
            ),
        ),
    )


def _report_end(experiment: Experiment, grid: tune.ResultGrid, place: SweepPlace, console: Console) -> None:
    ended = place.num_ended()
    for result in grid:
        if result.error is not None:
            console.print(f"failed: {result.path}/error.txt", soft_wrap=True, highlight=False)
    if ended < experiment.num_trials:
        console.print(f"{ended} of {experiment.num_trials} trials have ended; go on with --resume", highlight=False)
    console.print(f"trials: {place}", soft_wrap=True, highlight=False)
