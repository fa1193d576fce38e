"""Linear layers in float32 on a CPU by oneDNN, where it is the faster library.

torch takes float32 matrix products from MKL, which leaves half of the speed of other makers' processors unused; oneDNN is
in every build of torch for x86 but is not asked. Which one is faster is measured once a machine (`kept_choices`). Both sum in
float32, in another order.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from tppo_rl.kernels.kept_choices import kept_choice
from tppo_rl.kernels.timing import least_seconds

_GAIN = 1.2
"""oneDNN must be faster by this factor: near 1 the choice, and with it the rounding, would change from run to run."""
_ROW_STEP = 64
"""Rows are padded to a multiple of it: oneDNN compiles code for every shape, which takes as long as many products, and no
two micro-batches have the same number of tokens."""
_WIDTH = 256
FEW_ROWS, MANY_ROWS = 16, 512
"""Rows of an engine step that takes one token of each request, and of a micro-batch or a prefill."""

_logger = logging.getLogger(__name__)


def onednn_linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns `inputs @ weight.T + bias` without a gradient, float32 [..., N].

    Args:
        inputs: float32 [..., K], on a CPU.
        weight: float32 [N, K], as it is stored: nothing is repacked ahead.
        bias: float32 [N].
    """
    rows = inputs.reshape(-1, inputs.shape[-1])
    return _product(_padded(rows), weight, bias)[: len(rows)].view(*inputs.shape[:-1], weight.shape[0])


class _OneDNNLinear(torch.autograd.Function):
    """`onednn_linear` with its gradients, which are matrix products as well."""

    @staticmethod
    def forward(ctx: Any, inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        padded = _padded(inputs.reshape(-1, inputs.shape[-1]))
        # Other layers that read the same inputs share them; a padded copy would be kept for each.
        ctx.save_for_backward(inputs, weight)
        outputs = _product(padded, weight, bias)
        return outputs[: inputs.shape[:-1].numel()].view(*inputs.shape[:-1], weight.shape[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        shape, inputs = inputs.shape, _padded(inputs.reshape(-1, inputs.shape[-1]))
        rows = gradient.reshape(-1, gradient.shape[-1])
        padded = _padded(rows)
        of_inputs = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_inputs = _product(padded, weight.t())[: len(rows)].view(shape)
        if ctx.needs_input_grad[1]:
            of_weight = _product(padded.t(), inputs.t())
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0)
        return of_inputs, of_weight, of_bias


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """Returns [M, K] with zeros below, M a multiple of `_ROW_STEP` where it is larger."""
    missing = -len(rows) % _ROW_STEP if len(rows) > _ROW_STEP else 0
    return nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _product(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(inputs, weight, bias, "none", [], "")  # type: ignore[no-any-return]


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`torch.nn.functional.linear`, by oneDNN where inputs and weight are float32 on a CPU, outside of autocast."""
    by_onednn = (
        inputs.dtype == weight.dtype == torch.float32
        and inputs.device.type == weight.device.type == "cpu"
        and inputs.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )
    if not by_onednn:
        return nn.functional.linear(inputs, weight, bias)
    if torch.is_grad_enabled() and (inputs.requires_grad or weight.requires_grad):
        return _OneDNNLinear.apply(inputs, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return onednn_linear(inputs, weight, bias)


class FastLinear(nn.Linear):
    """A linear layer that computes with `linear`."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Returns [..., N] of [..., K]."""
        return linear(inputs, self.weight, self.bias)


def use_fastest_linear(model: nn.Module) -> bool:
    """Makes a model's linear layers use the library that is faster here; returns whether that is oneDNN.

    Layers with a forward pass of their own (subclasses of `Linear`) are left alone.
    """
    if next(model.parameters()).device.type != "cpu" or not onednn_is_faster(torch.get_num_threads()):
        return False
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = FastLinear
    return True


def fastest_linear(num_threads: int) -> Callable[..., torch.Tensor]:
    """Returns `torch.nn.functional.linear` or a substitute for it, whichever is faster here for few and for many rows.

    Where rows are few, time is that of the call and not of the product, so that the two may differ.
    """
    few, many = (
        linear if onednn_is_faster(num_threads, rows) else nn.functional.linear for rows in (FEW_ROWS, MANY_ROWS)
    )
    if few is many:
        return few

    def by_rows(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        return (few if len(inputs) <= _ROW_STEP else many)(inputs, weight, bias)

    return by_rows


@cache
def onednn_is_faster(num_threads: int, num_rows: int = MANY_ROWS) -> bool:
    """Measures both libraries on one matrix product, some milliseconds, once for each number of torch threads and rows on a machine."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    return kept_choice(f"onednn {num_threads} {num_rows}", lambda: _measured(num_threads, num_rows))


def _measured(num_threads: int, num_rows: int) -> bool:
    generator = torch.Generator().manual_seed(0)
    inputs, weight = (torch.randn(rows, _WIDTH, generator=generator) for rows in (num_rows, _WIDTH))
    usual = least_seconds(lambda: nn.functional.linear(inputs, weight))
    onednn = least_seconds(lambda: linear(inputs, weight))
    _logger.info(
        "linear layers, %d threads, %d rows: torch %.0f us, oneDNN %.0f us",
        num_threads,
        num_rows,
        1e6 * usual,
        1e6 * onednn,
    )
    return usual > _GAIN * onednn
