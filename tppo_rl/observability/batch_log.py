"""All that the updates of a run trained, so that it can be trained again with other options of the learners.

    batches/run.json                    what the run was
    batches/iteration_000001.parquet    the fragments of an update in their order, without windows in hindsight

What else an update depends on stands in the metadata of its file (`TrainedBatch`). A resumed run writes its updates anew, so the files are
the history of the final weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import Fragment, fragments_from_table, table_from_fragments
from tppo_rl.core.whole_files import write_whole

FOLDER = "batches"
_RUN = "run.json"
_METADATA = b"tppo_rl"


class TrainedBatch(NamedTuple):
    """One update's fragments, and what it depended on besides."""

    fragments: list[Fragment]
    left_out: list[int]
    """Episodes that had ended by the end of the update and whose last windows are not trained."""
    critic_starts_at: float | None
    """Mean return that a new critic was told before the update; None: it was told none."""
    resumed: bool
    """Whether the run was resumed just before: what it knew of open windows was gone."""
    weights: int
    """Checksum of the weights after the update."""


class BatchLog:
    """Keeps the batches of a run.

    Args:
        folder: Of the run.
        facts: What the run was, as JSON.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._folder = folder / FOLDER
        self._facts = facts
        self.critic_starts_at: float | None = None
        self.resumed = False
        """Both are noted with the next batch."""

    def record(self, iteration: int, fragments: Sequence[Fragment], left_out: Collection[int], weights: int) -> None:
        """Writes the batch of an iteration; the arguments are those of `TrainedBatch`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / _RUN).is_file():
            write_whole(self._folder / _RUN, json.dumps(self._facts))
        more = {
            "left_out": sorted(left_out),
            "critic_starts_at": self.critic_starts_at,
            "resumed": self.resumed,
            "weights": weights,
        }
        table = table_from_fragments(fragments).replace_schema_metadata({_METADATA: json.dumps(more)})
        file = self._folder / f"iteration_{iteration:06d}.parquet"
        partial = file.with_suffix(".partial")
        pq.write_table(table, partial, compression="zstd")
        os.replace(partial, file)
        self.critic_starts_at, self.resumed = None, False


def batch_files(run: Path) -> list[Path]:
    """Returns the files of a run's batches by iteration, from the first one on.

    Raises:
        OptionError: it has kept none, or lacks one.
    """
    if not run.is_dir():
        raise OptionError(f"{run}: there is no such folder of a run")
    files = sorted((run / FOLDER).glob("iteration_*.parquet"))
    if not files or not (run / FOLDER / _RUN).is_file():
        raise OptionError(f"{run}: has no {FOLDER}; a run keeps them with record_batches=True")
    for number, file in enumerate(files, 1):
        if file.name != f"iteration_{number:06d}.parquet":
            raise OptionError(
                f"{run / FOLDER}: lacks the batch of iteration {number}; all are needed from the first one on"
            )
    return files


def run_facts(run: Path) -> dict[str, Any]:
    """Returns what a run was that has kept its batches.

    Raises:
        OptionError: the file is not one that a run has written.
    """
    file = run / FOLDER / _RUN
    try:
        facts = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise OptionError(f"{file}: is not what a run writes: {error}") from None
    return facts


def read_batch(file: Path) -> TrainedBatch:
    """Reads what `BatchLog.record` has written.

    Raises:
        OptionError: the file is not one that a run has written.
    """
    try:
        table = pq.read_table(file)
        more = json.loads(table.schema.metadata[_METADATA])
        fragments = fragments_from_table(table.replace_schema_metadata())
        return TrainedBatch(fragments, **more)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{file}: is not what a run writes: {error}") from None
