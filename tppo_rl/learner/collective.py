"""Communication of learners: sums, maxima, a broadcast and a union, which all learners call in the same order."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import torch


class Collective(Protocol):
    """Operations that every learner calls in the same order with tensors of the same shape and dtype."""

    rank: int
    """Index of this learner, from 0."""
    size: int
    """Number of learners."""

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replaces `tensor` in place by its sum over all learners and returns it."""

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replaces `tensor` in place by its maximum over all learners and returns it."""

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        """Replaces `tensor` in place by the tensor of learner 0 and returns it."""

    def union(self, names: Iterable[str]) -> list[str]:
        """Returns the names that any learner has, sorted."""


class SingleLearner:
    """The collective of one learner, which exchanges nothing."""

    rank = 0
    size = 1

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def union(self, names: Iterable[str]) -> list[str]:
        return sorted(names)


class TorchDistributed:
    """The collective of a torch.distributed process group that is already set up.

    Tensors are moved to `device` for the exchange, because NCCL takes CUDA tensors only.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.rank = torch.distributed.get_rank()
        self.size = torch.distributed.get_world_size()
        self._device = torch.device(device)

    def sum_(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._all_reduce(tensor, torch.distributed.ReduceOp.SUM)

    def max_(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._all_reduce(tensor, torch.distributed.ReduceOp.MAX)

    def broadcast_(self, tensor: torch.Tensor) -> torch.Tensor:
        exchanged = tensor.to(self._device)
        torch.distributed.broadcast(exchanged, src=0)
        return tensor if exchanged is tensor else tensor.copy_(exchanged)

    def union(self, names: Iterable[str]) -> list[str]:
        gathered: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(gathered, sorted(names))
        return sorted({name for of_learner in gathered for name in of_learner})

    def _all_reduce(self, tensor: torch.Tensor, op: torch.distributed.ReduceOp.RedOpType) -> torch.Tensor:
        exchanged = tensor.to(self._device)
        torch.distributed.all_reduce(exchanged, op=op)
        return tensor if exchanged is tensor else tensor.copy_(exchanged)


def current_collective(device: torch.device | str = "cpu") -> Collective:
    """Returns the collective of the process group that the host has set up, or a single learner without a group.

    A group of one counts as no group: an engine in the same process makes such a group for itself.
    """
    available = torch.distributed.is_available() and torch.distributed.is_initialized()
    return TorchDistributed(device) if available and torch.distributed.get_world_size() > 1 else SingleLearner()
