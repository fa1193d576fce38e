"""The way of new weights to the workers of an engine.

| an env-runner gets | workers | transport | copies of the weights beside the engine's own |
|---|---|---|---|
| the weights | in the same process | `SameProcess` | none: they read what the env-runner has |
| the weights | in processes of their own, on one machine | `SharedMemory` | one for each engine, which all its workers map |
| a learner's offer | anywhere | `Broadcast` | one for each worker |

    stage(weights) ──▶ staged() ──▶ workers take the weights      between two steps
     any time

`staged` says what vLLM's weight transfer is to tell the workers, as `tppo_rl.rollout.weight_receivers.Source` has it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch.distributed import DistError

from tppo_rl.rollout.broadcast_group import StoreLinks
from tppo_rl.rollout.packed_weights import places_of
from tppo_rl.rollout.weight_broadcast import ATTEMPTS, Offer, WeightsNotReceived, WeightsWithdrawn, ask
from tppo_rl.rollout.weights_file import WeightsFile
from tppo_rl.rollout.weights_folder import WeightsFolder

logger = logging.getLogger(__name__)


class WeightTransport(Protocol):
    """Brings weights to where workers can read them."""

    def stage(self, weights: Any) -> None:
        """Takes tensors by their transformers names, which stay as they are until `staged` has ended, or an offer (`Broadcast`)."""

    def staged(self) -> AbstractContextManager[dict[str, Any]]:
        """Returns a context in which workers can read the weights; its value says how."""

    def close(self) -> None:
        """Gives everything back; further calls do nothing."""


class SameProcess:
    """Workers read the tensors that they are given."""

    def __init__(self) -> None:
        self._tensors: Mapping[str, torch.Tensor] | None = None

    def stage(self, weights: Mapping[str, torch.Tensor]) -> None:
        self._tensors = weights

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

    def stage(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Writes weights into shared memory.

        Raises:
            NoRoomForWeights: they do not fit; what was staged before is lost.
        """
        self._is_staged = False
        places, size = places_of(weights)
        if self._file is None or self._file.places != places:
            self._drop()
            self._file = self._folder.new_file(places, size)
        self._file.write(weights)
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


class Broadcast:
    """Workers get weights from a learner, by torch.distributed (`tppo_rl.rollout.weight_broadcast`).

    Args:
        receive: Lets all workers receive what is sent to a group, and returns what each says: whether the weights were there, or
            the words of an error.
        num_workers: Of the engine.
    """

    def __init__(self, receive: Callable[[Offer, str], list[bool | str]], num_workers: int) -> None:
        self._receive = receive
        self._num_workers = num_workers
        self._links = StoreLinks()
        self._offer: Offer | None = None

    def stage(self, weights: Offer) -> None:
        """Lets the workers receive weights; their model stays as it is.

        Raises:
            WeightsNotReceived: they did not arrive, nor when all had found one another again.
            WeightsWithdrawn: the learner offers newer ones.
        """
        self._offer = None
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answers = self._receive(weights, ask(weights, self._num_workers, self._links))
            except (OSError, DistError) as error:
                answers = [str(error)]
            errors = [answer.partition("\n")[0] for answer in answers if isinstance(answer, str)]
            if not errors:
                break
            if attempt == ATTEMPTS:
                raise WeightsNotReceived(
                    f"new weights did not arrive from the learner at {weights.address}, port {weights.port}, in {ATTEMPTS} attempts "
                    f"({errors[0]}); if the learner is gone, go on from the newest checkpoint with --resume; if it is not, look at the "
                    "network between the nodes, or set weight_transport to 'object_store'"
                )
            logger.warning("new weights did not arrive, and are asked for again: %s", errors[0])
        if not all(answers):
            raise WeightsWithdrawn
        self._offer = weights

    @contextmanager
    def staged(self) -> Iterator[dict[str, Any]]:
        assert self._offer is not None, "no weights were staged"
        number, self._offer = self._offer.number, None
        yield {"received": number}

    def close(self) -> None:
        self._offer = None
