"""Experiments of several trials on Ray Tune: grids and repeats of a run file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback

from tppo_rl.algorithms import algorithm_class
from tppo_rl.options import OptionError
from tppo_rl.run import quiet_libraries, start_ray
from tppo_rl.run_files import Experiment
from tppo_rl.summary import summarize, write_summary


class SummaryCallback(Callback):
    """Writes `summary.json` into the folder of every trial that ends."""

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Summarizes the trial's last result; its last evaluation is the newest that it made."""
        result = trial.last_result
        write_summary(Path(trial.local_path), summarize(result, result["heldout_latest"]))


def run_trials(experiment: Experiment, results: Path, *, resume: bool = False) -> tune.ResultGrid:
    """Runs the points of an experiment's grid as Tune trials, which queue for the machine's resources.

    Args:
        experiment: checked.
        results: folder that holds one folder for each experiment.
        resume: go on with the unfinished trials of the experiment's folder.

    Raises:
        OptionError: nothing to resume, or the folder of an earlier sweep would be overwritten.
    """
    folder = (results / experiment.name).resolve()
    quiet_libraries()
    trainable = algorithm_class(experiment.run)
    if resume:
        if not tune.Tuner.can_restore(str(folder)):
            raise OptionError(f"--resume: {folder} holds no sweep; leave --resume out to begin anew")
        start_ray()
        return tune.Tuner.restore(str(folder), trainable, resume_unfinished=True, restart_errored=True).fit()
    if folder.exists() and any(folder.iterdir()):
        raise OptionError(f"{experiment.name}: {folder} holds an earlier sweep; go on with --resume, or move it away")
    start_ray()
    return make_tuner(experiment, trainable, results).fit()


def make_tuner(experiment: Experiment, trainable: Any, results: Path) -> tune.Tuner:
    """The Tuner of an experiment; `grid_search` values are Tune's own spelling of a grid."""
    checkpoints = experiment.checkpoint_config
    return tune.Tuner(
        trainable,
        param_space=experiment.options(),
        tune_config=tune.TuneConfig(num_samples=experiment.num_samples),
        run_config=tune.RunConfig(
            name=experiment.name,
            storage_path=str(results.resolve()),
            stop=dict(experiment.stop),
            callbacks=[SummaryCallback()],
            verbose=1,
            checkpoint_config=tune.CheckpointConfig(
                checkpoint_frequency=checkpoints.checkpoint_frequency,
                checkpoint_at_end=checkpoints.checkpoint_at_end,
                num_to_keep=checkpoints.num_to_keep,
            ),
        ),
    )
