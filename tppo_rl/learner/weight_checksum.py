"""A checksum of weights that does not depend on which learner has which of them."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch.distributed.tensor import DTensor

from tppo_rl.learner.collective import Collective


def weights_checksum(parameters: Iterable[torch.Tensor], collective: Collective) -> int:
    """Returns a sum over the bits of all weights, of all learners' slices; all learners must call it.

    Sums over whole numbers do not depend on their order: equal weights have equal sums wherever they lie.

    Args:
        parameters: Weights of 16 or 32 bits, all of them sharded, or none.
        collective: The other learners.
    """
    total = torch.zeros((), dtype=torch.int64)
    sharded = False
    for parameter in parameters:
        weight = parameter.detach()
        if isinstance(weight, DTensor):
            weight, sharded = weight.to_local(), True
        bits = weight.contiguous().view(torch.int32 if weight.element_size() == 4 else torch.int16).reshape(-1)
        # Every seventh weight counts once more, so that weights that trade places show.
        total += (31 * torch.sum(bits, dtype=torch.int64) + torch.sum(bits[::7], dtype=torch.int64)).cpu()
    return int(collective.sum_(total) if sharded else total)
