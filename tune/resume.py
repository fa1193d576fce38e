"""What Tune's own restore leaves to do after a kill: trials that ended just before it, results after the newest checkpoint, and
what a scheduler has learned.

Tune writes the state of a sweep once in a while, so it may not know of a trial that has ended since, and would run it again.
A trial's `summary.json` is written when it ends, and is what counts here.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from tppo_rl.config.run_files import Experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.core.whole_files import make_folder, write_whole
from tppo_rl.tune.tune_internals import TuneState

DEFINITION = "sweep.json"
SUMMARY = "summary.json"
_DEFINING = {"run", "env", "stop", "config", "num_samples", "seeds", "tune_config", "checkpoint_config"}


def write_definition(experiment: Experiment, folder: Path) -> None:
    """Keeps what a sweep is made of, so that no other one goes on in its folder."""
    make_folder(folder, "--results")
    write_whole(folder / DEFINITION, _definition(experiment))


def check_definition(experiment: Experiment, folder: Path, place: str = "") -> None:
    """Refuses to go on with a sweep under other options: Tune would take the old ones and say nothing.

    Args:
        experiment: That is to go on.
        folder: With the definition.
        place: Of the sweep, for messages; empty: the folder.

    Raises:
        OptionError: they differ; names the first key that does.
    """
    path = folder / DEFINITION
    if not path.is_file():
        return
    kept, given = json.loads(path.read_text(encoding="utf-8")), json.loads(_definition(experiment))
    for key in sorted(_DEFINING):
        if kept.get(key) != given[key]:
            raise OptionError(
                f"{experiment.name}.{key}={given[key]!r}: {place or folder} was begun with {kept.get(key)!r}, and a sweep goes on as it "
                "was begun; go on with that, or give another folder with --results"
            )


def _definition(experiment: Experiment) -> str:
    return json.dumps(experiment.model_dump(include=_DEFINING), indent=1, sort_keys=True)


def mark_ended_trials(folder: Path) -> list[str]:
    """Writes into a sweep's newest state that trials with a summary have ended.

    Returns:
        Ids of the trials that the state did not know to have ended.

    Raises:
        OptionError: the state cannot be read.
    """
    state = TuneState.newest(folder)
    summaries = {path.parent.name for path in folder.glob(f"*/{SUMMARY}")}
    return state.end_trials(summaries)


def forget_results_after(folder: Path, iteration: int) -> None:
    """Removes results after an iteration from a trial's `result.json` and `progress.csv`: they will come again."""
    results, table = folder / "result.json", folder / "progress.csv"
    if results.is_file():
        lines = [line for line in results.read_text(encoding="utf-8").splitlines() if _iteration_of(line) <= iteration]
        # In its place: Tune holds the file open, and would go on in one that is no more there.
        results.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if table.is_file():
        with table.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row for row in reader if (row["training_iteration"] or "").isdigit()]
            columns = list(reader.fieldnames or [])
        with table.open("w", encoding="utf-8", newline="") as file:
            if columns:
                writer = csv.DictWriter(file, columns, extrasaction="ignore")
                writer.writeheader()
                writer.writerows(row for row in rows if int(row["training_iteration"]) <= iteration)


def _iteration_of(line: str) -> float:
    try:
        return float(json.loads(line)["training_iteration"])
    except ValueError:
        # A kill in the middle of a line leaves half of it.
        return float("inf")


class TrimCallback(Callback):
    """When a trial goes on in a new process of Tune, forgets the results that came after its checkpoint.

    Which checkpoint that was shows in its first result: what Tune had noted about checkpoints may be older than a kill.
    """

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __getstate__(self) -> dict[str, Any]:
        return {"_seen": set()}

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Trims at the first result alone: later restarts are PBT's, whose trials take turns.

        Tune calls its own writers of results after this.
        """
        if trial.trial_id in self._seen:
            return
        self._seen.add(trial.trial_id)
        checkpoint = trial.checkpoint
        # A trial that goes on from another one's checkpoint keeps its own past.
        if checkpoint is None or Path(checkpoint.path).parent == Path(trial.storage.trial_fs_path):
            forget_results_after(Path(trial.local_path), int(result["training_iteration"]) - 1)
