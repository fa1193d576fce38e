"""The way of new weights from an env-runner's process to the workers of its engine.

| workers | transport | copies of the weights beside the engine's own |
|---|---|---|
| in the same process | `SameProcess` | none: they read what the env-runner has |
| in processes of their own, on one machine | `SharedMemory` | one for each engine, which all its workers map |

    stage(tensors) ──▶ staged() ──▶ workers take the weights      between two steps
     any time

`staged` says what vLLM's weight transfer is to tell the workers, as `tppo_rl.rollout.weight_receivers.Source` has it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch

from tppo_rl.rollout.packed_weights import places_of
from tppo_rl.rollout.weights_file import WeightsFile
from tppo_rl.rollout.weights_folder import WeightsFolder


class WeightTransport(Protocol):
    """Brings weights to where workers can read them."""

    def stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Takes weights by their transformers names; they stay as they are until `staged` has ended."""

    def staged(self) -> AbstractContextManager[dict[str, Any]]:
        """Returns a context in which workers can read the weights; its value says how."""

    def close(self) -> None:
        """Gives everything back; further calls do nothing."""


class SameProcess:
    """Workers read the tensors that they are given."""

    def __init__(self) -> None:
        self._tensors: Mapping[str, torch.Tensor] | None = None

    def stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self._tensors = tensors

    @contextmanager
    def staged(self) -> Iterator[dict[str, Any]]:
        assert self._tensors is not None, "no weights were staged"
        try:
            yield {"tensors": self._tensors}
        finally:
            self.close()

    def close(self) -> None:
        self._tensors = None


class SharedMemory:
    """Workers map a file.

    Its name is there until all workers have mapped it, at the first update; its memory stays, and is written again at the next ones.
    It goes back to the system with the last process of the engine, however that ends.

    Args:
        folder: Where the file is made.
    """

    def __init__(self, folder: WeightsFolder) -> None:
        self._folder = folder
        self._file: WeightsFile | None = None
        self._is_staged = False

    def stage(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Writes weights into shared memory.

        Raises:
            NoRoomForWeights: they do not fit; what was staged before is lost.
        """
        self._is_staged = False
        places, size = places_of(tensors)
        if self._file is None or self._file.places != places:
            self._drop()
            self._file = self._folder.new_file(places, size)
        self._file.write(tensors)
        self._is_staged = True

    @contextmanager
    def staged(self) -> Iterator[dict[str, Any]]:
        assert self._is_staged, "no weights were staged"
        assert self._file is not None
        self._is_staged = False
        try:
            yield {"path": str(self._file.path)}
        except BaseException:
            # Some workers may not have mapped it.
            self._drop()
            raise
        self._file.unlink()

    def close(self) -> None:
        self._drop()
        self._folder.remove()

    def _drop(self) -> None:
        if self._file is not None:
            self._file.unlink()
            self._file = None
