"""Experiment trackers: the metrics of TensorBoard under the same names and steps, and some responses as tables.

    trackers: {wandb: {project: words}, mlflow: {experiment: words}, trackio: {project: words}}

Each tracker's own package does the work, offline too. A run that goes on from a checkpoint goes on with its run there: the ids
are in `trackers.json` in the run's folder. A tracker that fails is named once and left out from then on; the run goes on, and
TensorBoard has everything.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tppo_rl.core.whole_files import write_whole

IDS = "trackers.json"
"""File of the runs' ids."""

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """A run at a tracker."""

    run_id: str
    """Under which the tracker finds the run again."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics; `step` is in sampled tokens."""

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table."""

    def close(self) -> None:
        """Ends the run."""


class Wandb:
    """Weights & Biases. Arguments are those of `wandb.init`."""

    def __init__(self, arguments: Mapping[str, Any], run_id: str, name: str, options: dict[str, Any], folder: Path):
        import wandb

        self.run_id = run_id
        self._table = wandb.Table
        given = {"name": name, "dir": str(folder), "id": run_id, "resume": "allow"} | dict(arguments)
        self._run = wandb.init(config=options, **given)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._run.log({name: self._table(columns=list(columns), data=[list(row) for row in rows])}, step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """MLflow. Arguments: `tracking_uri`, `experiment`, `run_name`, `tags`."""

    def __init__(
        self, arguments: Mapping[str, Any], run_id: str | None, name: str, options: dict[str, Any], folder: Path
    ):
        from mlflow import MlflowClient
        from mlflow.entities import RunStatus

        self._client = MlflowClient(arguments.get("tracking_uri"))
        self._finished = RunStatus.to_string(RunStatus.FINISHED)
        if run_id is None:
            experiment = arguments.get("experiment", "tppo_rl")
            found = self._client.get_experiment_by_name(experiment)
            experiment_id = self._client.create_experiment(experiment) if found is None else found.experiment_id
            run = self._client.create_run(
                experiment_id, run_name=arguments.get("run_name", name), tags=arguments.get("tags")
            )
            run_id = str(run.info.run_id)
            for key, value in options.items():
                self._client.log_param(run_id, key, value)
        self.run_id = run_id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = _milliseconds()
        metrics = [Metric(name, float(value), now, step) for name, value in values.items()]
        self._client.log_batch(self.run_id, metrics=metrics)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        data = {"columns": list(columns), "data": [list(row) for row in rows]}
        self._client.log_dict(self.run_id, data, f"{name}/{step:012d}.json")

    def close(self) -> None:
        self._client.set_terminated(self.run_id, self._finished)


class Trackio:
    """trackio. Arguments are those of `trackio.init`."""

    def __init__(self, arguments: Mapping[str, Any], run_id: str, name: str, options: dict[str, Any], folder: Path):
        import trackio

        self.run_id = run_id
        given = {"project": "tppo_rl", "name": run_id, "resume": "allow", "embed": False} | dict(arguments)
        self._run = trackio.init(config=options, **given)
        self._table = trackio.Table

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._run.log({name: self._table(columns=list(columns), data=[list(row) for row in rows])}, step=step)

    def close(self) -> None:
        self._run.finish()


_KINDS: dict[str, Callable[..., Tracker]] = {"wandb": Wandb, "mlflow": MLflow, "trackio": Trackio}


class Trackers:
    """The trackers of a run; none is the usual case.

    Args:
        wanted: Arguments of each tracker by its name (the option `trackers`).
        options: Options of the run, as a user writes them.
        folder: The run's folder.
    """

    def __init__(self, wanted: Mapping[str, Mapping[str, Any]], options: Mapping[str, Any], folder: Path) -> None:
        self._trackers: dict[str, Tracker] = {}
        if not wanted:
            return
        file = folder / IDS
        ids = dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
        plain = json.loads(json.dumps(dict(options), default=str))
        for name, arguments in wanted.items():
            # MLflow gives its runs their ids itself.
            run_id = ids.get(name) or (None if name == "mlflow" else f"{folder.name}-{uuid.uuid4().hex[:8]}")
            tracker = _KINDS[name](arguments, run_id, folder.name, plain, folder)
            self._trackers[name] = tracker
            ids[name] = tracker.run_id
        write_whole(file, json.dumps(ids))

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Logs metrics; `step` is in sampled tokens."""
        self._each(lambda tracker: tracker.scalars(step, values))

    def table(self, step: int, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Logs a table."""
        self._each(lambda tracker: tracker.table(step, name, columns, rows))

    def close(self) -> None:
        """Ends the runs."""
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                action(tracker)
            except Exception as error:
                del self._trackers[name]
                logger.warning(
                    "trackers.%s failed and is left out from now on (TensorBoard has everything): %s: %s",
                    name,
                    type(error).__name__,
                    error,
                )


def _milliseconds() -> int:
    return int(time.time() * 1000)
