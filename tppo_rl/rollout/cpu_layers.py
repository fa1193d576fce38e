"""Layers of vLLM on a CPU, whose weights it packs for oneDNN: what a process that holds a model needs so that they take new weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from tppo_rl.core.insides import VLLM, Contract

CONTRACT: Contract = {
    "vllm.model_executor.layers.utils": ("dispatch_cpu_unquantized_gemm",),
    "vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method:UnquantizedFusedMoEMethod": ("_setup_kernel",),
}
"""We also use `cpu_linear` and `weight` of unquantized linear layers, which exist on instances alone: the engine's tests check them."""


@contextmanager
def unpacked_linear_layers(linear: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Makes models that are built in this context keep the weights of linear layers in the layout in which they were loaded.

    vLLM repacks them for oneDNN into memory that nothing can write to afterwards, so an update has to pack all of them again.

    Args:
        linear: (inputs, weight, bias) -> outputs of these layers.
    """
    with VLLM.insides("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm"):
        from vllm.model_executor.layers import utils

        dispatch = utils.dispatch_cpu_unquantized_gemm

    def leave_unpacked(layer: Any, remove_weight: bool) -> None:
        layer.cpu_linear = linear

    utils.dispatch_cpu_unquantized_gemm = leave_unpacked
    try:
        yield
    finally:
        utils.dispatch_cpu_unquantized_gemm = dispatch


def pack_tied_layers(model: torch.nn.Module) -> None:
    """Packs the layers that share their weight with another one, after an update.

    vLLM packs a layer's weight when the layer itself gets a new one. A tied output layer gets none: its weights are those of the
    embedding. So it would go on with the weights of the engine's start.
    """
    with VLLM.insides("vllm.model_executor.layers.utils.dispatch_cpu_unquantized_gemm"):
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    by_weight: dict[int, list[Any]] = defaultdict(list)
    for layer in model.modules():
        weight = layer._parameters.get("weight")
        if weight is not None and weight.numel() and hasattr(layer, "cpu_linear"):
            by_weight[weight.data_ptr()].append(layer)
    for layers in by_weight.values():
        for layer in layers if len(layers) > 1 else ():
            dispatch_cpu_unquantized_gemm(layer, remove_weight=False)


def pack_experts_at_updates() -> None:
    """Makes models in this process pack the experts' weights at every update.

    vLLM packs them for its kernel when an engine starts, and leaves new weights as they come.
    """
    with VLLM.insides("vllm…unquantized_fused_moe_method.UnquantizedFusedMoEMethod._setup_kernel"):
        from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

        setup = UnquantizedFusedMoEMethod._setup_kernel
    if getattr(setup, "_packs_at_updates", False):
        return

    def setup_and_pack(self: Any, layer: Any, w13: torch.Tensor, w2: torch.Tensor) -> None:
        is_update = self.moe_kernel is not None
        setup(self, layer, w13, w2)
        if is_update:
            self.moe_kernel.fused_experts.process_weights_after_loading(layer)

    setup_and_pack._packs_at_updates = True  # type: ignore[attr-defined]
    UnquantizedFusedMoEMethod._setup_kernel = setup_and_pack
