"""Tune's insides: the file that it keeps a sweep's state in, and what its schedulers have learned.

See `tppo_rl.core.insides` for what `CONTRACT` is.
"""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from ray.tune.schedulers import AsyncHyperBandScheduler, PopulationBasedTraining, TrialScheduler

from tppo_rl.core.errors import OptionError
from tppo_rl.core.insides import RAY, Contract

CONTRACT: Contract = {
    "ray.tune.experiment:Trial": ("TERMINATED", "ERROR", "checkpoint", "local_path"),
    "ray.tune.execution.tune_controller:TuneController": ("CKPT_FILE_TMPL",),
    "ray.tune.schedulers.async_hyperband:_Bracket": (),
    "ray.tune.schedulers.pbt:_PBTTrialState": (),
}
"""Beside these ASHA has `_brackets` with `_rungs`; PBT `_trial_state`, `_num_perturbations`, `_next_perturbation_sync`, and its trials
`_PBT_STATE`; a state file `trial_data`, whose trials have `trial_id`, `status` and `relative_logdir`. The tests of resumed sweeps
read all of them."""
STATE_FILES = "experiment_state-*.json"
_PBT_STATE = ("last_score", "last_perturbation_time", "last_train_time")


class TuneState:
    """The file that Tune keeps the state of a sweep in.

    Args:
        path: Of the file.

    Raises:
        OptionError: it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._state = json.loads(path.read_text(encoding="utf-8"))
            self._trials = [json.loads(trial) for trial, _ in self._state["trial_data"]]
        except (ValueError, KeyError) as error:
            raise OptionError(
                f"--resume: {path} is broken ({error}); move it away to go on from an older one"
            ) from None

    @classmethod
    def newest(cls, folder: Path) -> TuneState:
        """The newest state of a sweep's folder."""
        return cls(max(folder.glob(STATE_FILES)))

    def end_trials(self, folders: Collection[str]) -> list[str]:
        """Writes that the trials of some folders have ended; returns the ids of those that were not known to have."""
        ended = []
        for index, trial in enumerate(self._trials):
            if trial.get("relative_logdir") in folders and trial["status"] not in (Trial.TERMINATED, Trial.ERROR):
                trial["status"] = Trial.TERMINATED
                self._state["trial_data"][index][0] = json.dumps(trial)
                ended.append(str(trial["trial_id"]))
        if ended:
            partial = self._path.with_name(f"partial_{self._path.name}")
            partial.write_text(json.dumps(self._state), encoding="utf-8")
            os.replace(partial, self._path)
        return ended


class SchedulerMemory(Callback):
    """Saves with the sweep's state what its scheduler has learned: Tune forgets it, and ASHA would stop no one after a restart.

    Args:
        scheduler: Of the same Tuner, with which this is pickled.
    """

    def __init__(self, scheduler: TrialScheduler) -> None:
        self._scheduler = scheduler
        self._pbt_trials: dict[str, dict[str, Any]] = {}

    def get_state(self) -> dict[str, Any] | None:
        """The rungs of ASHA, or the scores of PBT's population."""
        with RAY.insides("the state of its schedulers"):
            return self._learned()

    def _learned(self) -> dict[str, Any] | None:
        scheduler = self._scheduler
        if isinstance(scheduler, AsyncHyperBandScheduler):
            return {"rungs": [copy.deepcopy(bracket._rungs) for bracket in scheduler._brackets]}
        if isinstance(scheduler, PopulationBasedTraining):
            return {
                "perturbations": scheduler._num_perturbations,
                "next_sync": scheduler._next_perturbation_sync,
                "trials": {
                    trial.trial_id: {key: getattr(state, key) for key in _PBT_STATE}
                    for trial, state in scheduler._trial_state.items()
                },
            }
        return None

    def set_state(self, state: dict[str, Any]) -> None:
        """Gives it back; PBT has no trials yet at this moment and gets theirs at the first step."""
        scheduler = self._scheduler
        if isinstance(scheduler, AsyncHyperBandScheduler):
            for bracket, rungs in zip(scheduler._brackets, state["rungs"], strict=True):
                bracket._rungs = rungs
        if isinstance(scheduler, PopulationBasedTraining):
            scheduler._num_perturbations = state["perturbations"]
            scheduler._next_perturbation_sync = state["next_sync"]
            self._pbt_trials = state["trials"]

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Gives PBT's trials their scores."""
        if self._pbt_trials and isinstance(self._scheduler, PopulationBasedTraining):
            for trial, state in self._scheduler._trial_state.items():
                vars(state).update(self._pbt_trials.get(trial.trial_id, {}))
            self._pbt_trials = {}
