"""Weights from the first learner straight to the workers of an engine: neither the driver nor a file has them on the way.

    driver            learner                          env-runner              its engine's workers
    push ───────────▶ copies its weights, an offer
         ◀── Offer ── trains on
    set_state ──────────────────────────────────────▶  between two requests
                      listener ◀── name of a group ─── asks
                      thread   ═══════════ broadcast, a group for each engine and update ═══▶ hold the weights
                      gives the copy up, once no
                      env-runner may ask for it        loads ──────────────▶ change the model

                      waits for                        at most
    driver            the copy                         as long as a learner's call takes
    training          nobody
    listener          an env-runner that asks          for ever; it keeps nothing
    its threads       the workers of one engine        twice `Offer.timeout_s` until all are there, once for a part of the weights
    env-runner        its workers                      the same, `ATTEMPTS` times
    workers           the learner                      the same

A worker changes its model when it has everything, so that an update that fails changes nothing. Every attempt has a group of its own: there
is none to be repaired. An env-runner that comes back has a new engine, which asks as others do.
"""

from __future__ import annotations

import json
import logging
import threading
import uuid
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tppo_rl.core.errors import RunError
from tppo_rl.rollout.broadcast_group import BroadcastGroup, StoreLinks, open_store, own_address
from tppo_rl.rollout.packed_weights import copy_to_places, places_in, places_of, table_of

logger = logging.getLogger(__name__)

ATTEMPTS = 2
_REQUESTS = "requests"
_LONGEST_WAIT_S = 60.0
_YEARS_S = 1e8
_NO_LONGER_THERE = -1


class WeightsNotReceived(RunError):
    """An engine's workers did not get the weights that a learner offers."""


class WeightsWithdrawn(Exception):
    """A learner no longer offers certain weights: newer ones are on the way to all env-runners that it counts on."""


class Offer(NamedTuple):
    """What an engine needs to know to get weights from a learner."""

    address: str
    port: int
    number: int
    """Of the weights among all that the learner has offered, from 1."""
    table: str
    """Places of the tensors, from `table_of`."""
    size: int
    """Bytes of all tensors."""
    timeout_s: float


@dataclass
class _Copy:
    """Weights that are offered."""

    buffer: torch.Tensor
    """uint8 [bytes]."""
    readers: int = 0
    """Threads that are sending it."""


class WeightSender:
    """Offers copies of a learner's weights, and sends them to the engines that ask.

    Args:
        address: At which other nodes reach this process.
        timeout_s: Longest wait, see above.
    """

    def __init__(self, address: str, timeout_s: float = _LONGEST_WAIT_S) -> None:
        self._address = address
        self._timeout_s = min(timeout_s, _LONGEST_WAIT_S)
        self._copies: dict[int, _Copy] = {}
        self._spare: torch.Tensor | None = None
        self._number = 0
        self._lock = threading.Lock()
        self._store = open_store(address)
        self._links = StoreLinks()
        self._listener = threading.Thread(target=self._listen, name="weight-requests", daemon=True)
        self._listener.start()

    def offer(
        self,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype | None = None,
        *,
        float32: Iterable[str] = (),
        oldest: int | None = None,
    ) -> Offer:
        """Copies weights, which may change afterwards, and returns what engines need to ask for the copy.

        Args:
            weights: Tensors by name.
            dtype: Number format of floating-point tensors of the copy; None: their own.
            float32: Parts of names; tensors whose name has one of them keep their number format.
            oldest: Number of the oldest offer that an engine may still ask for; None: none but the new one.
        """
        places, size = places_of(weights, dtype, float32=float32)
        self._give_up(before=self._number + 1 if oldest is None else oldest)
        buffer = self._free_buffer(size)
        copy_to_places(weights, buffer, places)
        with self._lock:
            self._number += 1
            self._copies[self._number] = _Copy(buffer)
        return Offer(self._address, self._store.port, self._number, table_of(places), size, self._timeout_s)

    def close(self) -> None:
        """Offers nothing any more; further calls do nothing."""
        if not self._listener.is_alive():
            return
        self._store.queue_push(_REQUESTS, "")
        self._listener.join(self._timeout_s)
        # Whoever asks later is refused at once.
        del self._store
        self._copies.clear()

    def _give_up(self, before: int) -> None:
        with self._lock:
            for number in [number for number in self._copies if number < before]:
                copy = self._copies.pop(number)
                # Whoever still reads a copy must not find other weights in it.
                if copy.readers == 0:
                    self._spare = copy.buffer

    def _free_buffer(self, size: int) -> torch.Tensor:
        # New pages of memory cost more than the copy.
        spare, self._spare = self._spare, None
        return spare if spare is not None and len(spare) == size else torch.empty(size, dtype=torch.uint8)

    @contextmanager
    def _reading(self, number: int) -> Iterator[torch.Tensor | None]:
        with self._lock:
            copy = self._copies.get(number)
            if copy is not None:
                copy.readers += 1
        try:
            yield None if copy is None else copy.buffer
        finally:
            if copy is not None:
                with self._lock:
                    copy.readers -= 1

    def _listen(self) -> None:
        # A connection serves one call at a time, and this one waits.
        with self._links.link(self._address, self._store.port, _YEARS_S) as requests:
            while request := requests.queue_pop(_REQUESTS):
                threading.Thread(target=self._send, kwargs=json.loads(request), name="weights", daemon=True).start()

    def _send(self, group: str, number: int, size: int) -> None:
        with self._reading(number) as buffer:
            try:
                with self._links.link(self._address, self._store.port, 2 * self._timeout_s) as store:
                    members = BroadcastGroup(store, group, 0, size, self._address, 2 * self._timeout_s)
                    members.broadcast_(torch.tensor([_NO_LONGER_THERE if buffer is None else number]))
                    if buffer is not None:
                        members.broadcast_(buffer)
                    members.end()
            except Exception as error:
                # The error itself would keep the group, and with it the connections by which others learn of the failure.
                logger.warning("an engine did not get the weights that it asked for: %s", str(error))


_senders: weakref.WeakKeyDictionary[Any, WeightSender] = weakref.WeakKeyDictionary()


def sender_of(learner: Any, address: str, timeout_s: float) -> WeightSender:
    """Returns the sender of a learner in this process, which is closed with the learner."""
    if learner not in _senders:
        _senders[learner] = sender = WeightSender(address, timeout_s)
        weakref.finalize(learner, sender.close)
    return _senders[learner]


def ask(offer: Offer, num_workers: int, links: StoreLinks) -> str:
    """Asks a learner to send what it offers, and returns the name of the group for it.

    Args:
        offer: What is asked for.
        num_workers: Workers of the engine that asks.
        links: The caller's connections.

    Raises:
        OSError: the learner is gone.
        torch.distributed.DistError: it does not answer.
    """
    group = uuid.uuid4().hex
    with links.link(offer.address, offer.port, offer.timeout_s) as store:
        store.queue_push(_REQUESTS, json.dumps({"group": group, "number": offer.number, "size": 1 + num_workers}))
    return group


class WeightReceiver:
    """Takes part in broadcasts, as a worker of an engine, and keeps the last weights for the next ones' place."""

    def __init__(self) -> None:
        self._links = StoreLinks()
        self._buffer: torch.Tensor | None = None
        self._offer: Offer | None = None

    def receive(self, offer: Offer, group: str, worker: int, num_workers: int) -> bool:
        """Receives weights.

        Args:
            offer: What is received.
            group: From `ask`.
            worker: Index of this worker in its engine.
            num_workers: Workers of the engine.

        Returns:
            Whether they were there; newer ones are then on offer.

        Raises:
            Exception: they did not arrive.
        """
        self._offer = None
        address, number = own_address(offer.address, offer.port), torch.zeros(1, dtype=torch.int64)
        with self._links.link(offer.address, offer.port, 2 * offer.timeout_s) as store:
            members = BroadcastGroup(store, group, 1 + worker, 1 + num_workers, address, 2 * offer.timeout_s)
            members.broadcast_(number)
            are_there = int(number) == offer.number
            if are_there:
                members.broadcast_(self._place(offer.size))
            members.end()
        self._offer = offer if are_there else None
        return are_there

    def _place(self, size: int) -> torch.Tensor:
        if self._buffer is None or len(self._buffer) != size:
            self._buffer = None
            self._buffer = torch.empty(size, dtype=torch.uint8)
        return self._buffer

    def tensors(self, number: int) -> dict[str, torch.Tensor]:
        """Returns the weights of an offer that was received last, as views that the next one changes."""
        assert self._offer is not None, "no weights were received"
        assert self._buffer is not None
        assert self._offer.number == number, f"weights {self._offer.number} were received, not {number}"
        return {name: place.of(self._buffer) for name, place in places_in(self._offer.table).items()}
