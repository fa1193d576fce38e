"""The batches of a run trained again with other options of the learners, without sampling: `tppo-rl retrain`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tppo_rl.core.errors import OptionError
from tppo_rl.core.waiting import stage
from tppo_rl.core.whole_files import make_folder
from tppo_rl.experiment.learners_alone import learner_config, learners_alone
from tppo_rl.experiment.result_log import RESULTS, flatten, read_results
from tppo_rl.observability.batch_log import batch_files, read_batch

_SHOWN = (
    "policy/loss", "policy/entropy", "policy/approximate_kl", "policy/clip_fraction_high", "policy/gradient_norm",
    "policy/advantage_std", "critic/loss", "critic/explained_variance", "critic/gradient_norm",
)  # fmt: skip
_ROWS = 12


class Retrained(NamedTuple):
    """One update that was made again."""

    iteration: int
    metrics: dict[str, float]
    """Of policy, critic, hindsight, staleness and mismatch, by the names of the table of metrics."""
    is_equal: bool
    """Whether the weights are those of the run, to the last bit."""


def retrain(run: Path, changes: Mapping[str, Any], iterations: int | None) -> Iterator[Retrained]:
    """Trains the kept batches of a run again, one update after the other.

    Args:
        run: Folder of a run with `record_batches`.
        changes: Options that differ from the run's.
        iterations: Number of updates; None: all that are kept.

    Raises:
        OptionError: the run has not kept its batches, an option says what is sampled, or its value is wrong.
    """
    files = batch_files(run)
    if iterations is not None and iterations > len(files):
        raise OptionError(f"--iterations={iterations}: {run} has kept the batches of {len(files)} iterations")
    yield from _updates(learner_config(run, changes), files[:iterations])


def _updates(config: Any, files: Sequence[Path]) -> Iterator[Retrained]:
    from tppo_rl.learner.boundaries import BoundaryTracker
    from tppo_rl.learner.learner import TPPOLearner
    from tppo_rl.observability.metrics import boundary_metrics, learner_metrics

    boundaries = BoundaryTracker(config.options)
    with learners_alone(config) as learners:
        for number, file in enumerate(files, 1):
            batch = read_batch(file)
            if batch.resumed:
                boundaries = BoundaryTracker(config.options, boundaries.waiting, boundaries.known())
            if batch.critic_starts_at is not None:
                learners.ask(partial(TPPOLearner.start_critic, value=batch.critic_starts_at))
            version = learners.ask(lambda learner: learner.policy_version)[0]
            with stage(f"update {number} of {len(files)}"):
                update = learners.update(batch.fragments + boundaries.due(), None, boundaries.settings(version))
            closed = boundaries.after_update(batch.fragments, update.fragments, version)
            boundaries.forget(batch.left_out)
            metrics = learner_metrics(update.metrics) | boundary_metrics(closed)
            yield Retrained(number, metrics, learners.weights_checksum() == batch.weights)


def write_and_compare(found: Iterator[Retrained], run: Path, out: Path) -> str:
    """Writes the metrics of each update as a line of `result.json`, and returns them beside the run's, where it has kept any.

    Args:
        found: From `retrain`.
        run: The run's folder.
        out: Folder of the results; a `result.json` there is replaced.
    """
    # What is refused leaves the results of an earlier time as they were.
    first, made = next(found), []
    make_folder(out, "--out")
    with (out / RESULTS).open("w", encoding="utf-8") as file:
        for one in chain([first], found):
            made.append(one)
            row = {"training_iteration": one.iteration, "weights_are_equal": one.is_equal, **one.metrics}
            file.write(json.dumps(row) + "\n")
            file.flush()
    # An iteration that was made again after a resume has several lines, and the last one counts.
    results = read_results(run) if (run / RESULTS).is_file() else []
    recorded = {result["training_iteration"]: flatten(result) for result in results}
    differs = next((one.iteration for one in made if not one.is_equal), None)
    times = "1 update" if len(made) == 1 else f"{len(made)} updates"
    says = (
        f"{times}; the weights are those of the run, to the last bit, after each"
        if differs is None
        else f"{times}; the weights differ from the run's from update {differs} on"
    )
    return "\n".join([*_table(made, recorded), "", f"{says}; all metrics: {out / RESULTS}"])


def free_folder(run: Path) -> Path:
    """Returns where the results of the next time go: `retrained` in the run's folder, or `retrained-2` and so on."""
    names = (f"retrained-{number}" if number > 1 else "retrained" for number in count(1))
    return next(folder for name in names if not (folder := run / name).exists())


def _table(made: Sequence[Retrained], recorded: Mapping[int, Mapping[str, Any]]) -> list[str]:
    shown = [made[place] for place in np.unique(np.linspace(0, len(made) - 1, _ROWS).round().astype(int))]
    names = [name for name in _SHOWN if any(name in one.metrics for one in shown)]
    lines = ["run → retrained", ""]
    for name in names:
        lines.append(name)
        for one in shown:
            if name in one.metrics:
                before = recorded.get(one.iteration, {}).get(name)
                lines.append(f"  update {one.iteration:>6}  {_number(before)} → {_number(one.metrics[name])}")
    return lines


def _number(value: Any) -> str:
    return "-" if value is None else f"{float(value):.4g}"
