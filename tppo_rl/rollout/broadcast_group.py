"""A process group of torch.distributed for one broadcast over gloo, apart from the groups that learners and engines have.

Every wait has a time-out. A member that is gone is an error for the others: at once for those that wait for it, after the time-out
for rank 0, which sends. Nobody leaves before all have everything.

`tppo_rl.core.insides` explains `CONTRACT`.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import BroadcastOptions, PrefixStore, ProcessGroupGloo, TCPStore

from tppo_rl.core.insides import TORCH, Contract

CONTRACT: Contract = {
    "torch.distributed:TCPStore": ("delete_key", "list_keys", "port", "queue_pop", "queue_push", "set_timeout"),
    "torch.distributed:ProcessGroupGloo": ("_Options", "create_device"),
}
"""We also use `_devices` and `_timeout` of such options. They exist on instances alone, so the tests of the group check them."""

_PART = 2**26
"""Bytes that are sent at a time: the time-out is for one part."""


def open_store(address: str) -> TCPStore:
    """Returns a store that this process keeps, at a port that is free."""
    return TCPStore(address, 0, is_master=True, wait_for_workers=False)


class StoreLinks:
    """Connections to stores, which are kept: torch looks up the names of both ends for each new one, which can take seconds."""

    def __init__(self) -> None:
        self._idle: dict[tuple[str, int], list[TCPStore]] = {}

    @contextmanager
    def link(self, address: str, port: int, timeout_s: float) -> Iterator[TCPStore]:
        """Gives a connection to the caller alone, for the context.

        Raises:
            OSError: nobody answers there.
            torch.distributed.DistError: who answers is no store.
        """
        idle = self._idle.setdefault((address, port), [])
        try:
            store = idle.pop()
        except IndexError:
            # The store itself tries again until its time is over, and prints its stack each time.
            socket.create_connection((address, port), timeout=timeout_s).close()
            store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout_s))
        store.set_timeout(timedelta(seconds=timeout_s))
        yield store
        # After an error nobody knows what it would answer next.
        idle.append(store)


class BroadcastGroup:
    """A group whose rank 0 sends, as one of its members; all make it at the same time, and `end` it.

    Args:
        store: Where members find one another; each has a connection of its own.
        name: Of the group, which no other group of the store has.
        rank: Of this member.
        size: Number of members.
        address: At which others can reach this member.
        timeout_s: Longest wait for all members to be there, and for a part of a broadcast.

    Raises:
        RuntimeError: some are not there in time.
    """

    def __init__(self, store: TCPStore, name: str, rank: int, size: int, address: str, timeout_s: float) -> None:
        self._timeout = timedelta(seconds=timeout_s)
        self._store, self._name, self._rank = store, name, rank
        gloo: Any = ProcessGroupGloo  # torch's stubs lack most of it.
        with TORCH.insides("ProcessGroupGloo._Options and .create_device"):
            options = gloo._Options()
            options._devices = [gloo.create_device(hostname=address)]
            options._timeout = self._timeout
        self._group = gloo(PrefixStore(name, store), rank, size, options)

    def broadcast_(self, tensor: torch.Tensor) -> None:
        """Replaces a contiguous tensor by that of rank 0, which has the same size and dtype.

        Raises:
            RuntimeError: a member is gone or too slow; the tensor may then be replaced in part.
        """
        options = BroadcastOptions()
        options.rootRank = 0
        options.timeout = self._timeout
        for part in tensor.view(-1).view(torch.uint8).split(_PART):
            self._group.broadcast([part], options).wait()

    def end(self) -> None:
        """Waits until all members have called it.

        Raises:
            RuntimeError: a member is gone or too slow.
        """
        self._group.barrier().wait()
        if self._rank == 0:
            # A store forgets nothing by itself.
            for key in self._store.list_keys():
                if key.startswith(f"{self._name}/"):
                    self._store.delete_key(key)


def own_address(address: str, port: int) -> str:
    """Returns the address from which this machine reaches another one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        # Nothing is sent.
        probe.connect((address, port))
        return str(probe.getsockname()[0])
