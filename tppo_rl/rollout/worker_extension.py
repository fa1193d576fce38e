"""What vLLM's workers do beside their own work: they begin the noise of sampling anew, and on a CPU they pack tied output layers again
when new weights are there.

vLLM packs the weights of a linear layer for oneDNN when the layer itself gets new ones. A tied output layer gets none: its weights
are those of the embedding. So it would go on with the weights of the engine's start.

Only vLLM's workers import this module, by its name.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch

from tppo_rl.core.insides import Contract

CONTRACT: Contract = {"vllm.model_executor.layers.utils": ("dispatch_cpu_unquantized_gemm",)}
"""We also use a worker's `model_runner.model`, and `cpu_linear` and `weight` of packed layers."""


class WorkerMethods:
    """Methods of a worker; vLLM adds them to its own class."""

    model_runner: Any

    def reseed(self, seed: int) -> None:
        """Seeds torch's generators of this process; all workers of a model need the same."""
        torch.manual_seed(seed)

    def pack_tied_layers(self) -> int:
        """Packs the layers that share their weight with another one; returns how many."""
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm

        by_weight: dict[int, list[Any]] = defaultdict(list)
        for layer in self.model_runner.model.modules():
            weight = layer._parameters.get("weight")
            if weight is not None and weight.numel() and hasattr(layer, "cpu_linear"):
                by_weight[weight.data_ptr()].append(layer)
        tied = [layer for layers in by_weight.values() if len(layers) > 1 for layer in layers]
        for layer in tied:
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)
        return len(tied)
