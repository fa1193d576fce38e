"""The state of sharded learners in files: each learner writes its rows, and reads those that it needs. Nothing is gathered.

    take_learner                 what one learner is to write
    TakenSlices.write            policy_0_of_2.safetensors by learner 0, policy_1_of_2.safetensors by learner 1, and so on
    TakenSlices.copied           the same, to be written while the learner trains on
    sharding.load_weights, …     load them, with any number of learners

| memory of a learner beside its slices | |
|---|---|
| writing | one slice, where it is not on the CPU; nothing else |
| writing while it trains on | as much as its slices |
| reading | one slice |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tppo_rl.core.sliced_arrays import Sliced, slice_file, write_slices
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.sharding import rows_of

OPTIMIZERS = "optimizers"
"""Name of the files with moments."""


@dataclass(frozen=True)
class FileOfSlices:
    """What one file is to hold."""

    rows: Mapping[str, torch.Tensor]
    """By key."""
    first_rows: Mapping[str, int]
    """Where in the whole tensors they begin; 0 where it is not said."""


@dataclass(frozen=True)
class TakenSlices:
    """What one learner is to write."""

    weights: dict[str, dict[str, Sliced]]
    """What stands for the weights of each model; the same on all learners, as is the next."""
    optimizers: dict[str, dict[str, Any]]
    """Each optimizer's `state_dict`, with a `Sliced` for each moment and numbers for counts."""
    files: dict[str, FileOfSlices]
    """By name. The rows are those of the model itself, and change with it."""

    def copied(self) -> TakenSlices:
        """Returns the same with copies of all rows on the CPU."""
        files = {
            name: replace(file, rows={key: rows.detach().to("cpu", copy=True) for key, rows in file.rows.items()})
            for name, file in self.files.items()
        }
        return replace(self, files=files)

    def write(self, folder: Path) -> dict[str, dict[str, Any]]:
        """Writes the files, and returns `Fingerprint.facts` by their names.

        Args:
            folder: Is there, and the same one for all learners.
        """
        return {name: write_slices(folder / name, file.rows, file.first_rows) for name, file in self.files.items()}


class _Taker:
    """Takes the rows that one learner has of tensors."""

    def __init__(self, collective: Collective) -> None:
        self._rank, self._size = collective.rank, collective.size
        self.files: dict[str, FileOfSlices] = {}

    def take(self, name: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, Sliced]:
        """Takes what is this learner's of tensors, and returns what stands for them in the checkpoint.

        Args:
            name: Of the files of all learners.
            tensors: By name, in the number format in which they are kept. Those that are not sharded are the same on all
                learners, and learner 0 writes them. One tensor under two names is written once.
        """
        places: dict[str, Sliced] = {}
        rows: dict[str, torch.Tensor] = {}
        first_rows: dict[str, int] = {}
        # By the objects: a learner that has no row of two tensors has the same memory for both, which is none.
        keys: dict[int, str] = {}
        for own_name, tensor in tensors.items():
            key = keys.setdefault(id(tensor), own_name)
            places[own_name] = Sliced(name, self._size, key, tuple(tensor.shape))
            if key != own_name:
                continue
            if isinstance(tensor, DTensor):
                first, end = rows_of(tensor)
                if self._rank == 0 or first < end:
                    rows[key], first_rows[key] = tensor.to_local(), first
            elif self._rank == 0:
                rows[key] = tensor
        self.files[slice_file(name, self._rank, self._size)] = FileOfSlices(rows, first_rows)
        return places


def take_learner(
    collective: Collective,
    models: Mapping[str, Mapping[str, torch.Tensor]],
    optimizers: Iterable[tuple[str, torch.optim.Optimizer]],
) -> TakenSlices:
    """Returns what one learner is to write; all learners must call it, and none waits for another.

    Args:
        collective: Says which learner it is.
        models: Their trained tensors by name, under the name of each model; tied ones are one object.
        optimizers: By name.
    """
    taker = _Taker(collective)
    weights = {name: taker.take(name, tensors) for name, tensors in models.items()}
    states = {name: optimizer.state_dict() for name, optimizer in optimizers}
    moments = {
        f"{name}/{index}/{entry}": value
        for name, state in states.items()
        for index, entries in state["state"].items()
        for entry, value in entries.items()
        if value.ndim
    }
    places = taker.take(OPTIMIZERS, moments)
    optimizer_states = {
        name: state
        | {
            "state": {
                index: {
                    entry: places[f"{name}/{index}/{entry}"] if value.ndim else value.item()
                    for entry, value in entries.items()
                }
                for index, entries in state["state"].items()
            }
        }
        for name, state in states.items()
    }
    return TakenSlices(weights, optimizer_states, taker.files)
