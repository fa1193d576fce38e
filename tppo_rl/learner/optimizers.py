"""One optimizer step: gradients in one flat buffer, summed over learners, clipped, applied with AdamW."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import NamedTuple

import torch

from tppo_rl.learner.collective import Collective
from tppo_rl.learner.loss_scale import adapt_loss_scale, loss_scale

_logger = logging.getLogger(__name__)
_NORM_ELEMENTS = 2**14


def trainable(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Returns the parameters that require a gradient; in a model with adapters all others are frozen."""
    return [parameter for parameter in parameters if parameter.requires_grad]


def make_adamw(
    parameters: Iterable[torch.nn.Parameter], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> torch.optim.AdamW:
    """Returns AdamW for the trainable parameters, with the fused kernel, which updates all of them in one pass."""
    return torch.optim.AdamW(trainable(parameters), lr=lr, betas=betas, weight_decay=weight_decay, fused=True)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[torch.nn.Parameter]:
    """Returns the parameters in the order of the optimizer's state."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def ramped_lr(lr: float, num_updates: int, num_warmup_updates: int) -> float:
    """Returns the learning rate of the update after `num_updates` earlier ones: a linear ramp up to `lr`."""
    return lr * min(1.0, (num_updates + 1) / num_warmup_updates) if num_warmup_updates else lr


def squared_norm(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Returns the sum of the squares of all elements, a float64 scalar.

    One float32 sum over 10^8 elements is off by a percent on a CPU, so sums of short parts are added up in float64.
    """
    norms = []
    for tensor in tensors:
        flat = tensor.reshape(-1)
        dtype = torch.promote_types(flat.dtype, torch.float32)
        whole = len(flat) // _NORM_ELEMENTS * _NORM_ELEMENTS
        norms.append(torch.linalg.vector_norm(flat[:whole].view(-1, _NORM_ELEMENTS), dim=1, dtype=dtype))
        norms.append(torch.linalg.vector_norm(flat[whole:], dtype=dtype)[None])
    return torch.cat(norms).double().square().sum()


class StepReport(NamedTuple):
    """Report of one optimizer step."""

    norm: float
    """Global gradient norm before clipping."""
    applied: bool
    """False if the norm was not finite; the weights were then left alone."""


def clip_and_step(
    optimizer: torch.optim.Optimizer,
    gradients: list[torch.Tensor],
    norm: float,
    *,
    lr: float,
    max_norm: float | None,
    name: str,
) -> StepReport:
    """Brings gradients of global norm `norm` down to `max_norm` and steps with learning rate `lr`.

    If the norm is not finite, the weights are left alone and a warning is logged. Gradients and norm are those of the scaled
    loss (see `loss_scale`), the report's norm is not.

    Args:
        optimizer: Optimizer of the parameters with these gradients.
        gradients: All gradients of this learner; they are changed in place.
        norm: Norm of the gradients over all learners.
        lr: Learning rate of the step.
        max_norm: Bound on the norm; None never clips.
        name: Name of the model in the warning.
    """
    factor = 1.0 / loss_scale(optimizer)
    norm *= factor
    is_finite = norm < float("inf")
    adapt_loss_scale(optimizer, overflowed=not is_finite)
    if not is_finite:
        scaled = "" if factor == 1.0 else f" (the loss is scaled by {loss_scale(optimizer):g} from now on)"
        _logger.warning("%s gradient is not finite: this optimizer step is skipped%s", name, scaled)
        return StepReport(norm, applied=False)
    if max_norm is not None and norm > max_norm:
        factor *= max_norm / norm
    if factor != 1.0:
        torch._foreach_mul_(gradients, factor)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    return StepReport(norm, applied=True)


def scaled_backward(optimizer: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Adds the gradients of the scaled loss to those of the optimizer's parameters."""
    scale = loss_scale(optimizer)
    (loss if scale == 1.0 else loss * scale).backward()


class GradientStep:
    """The gradients of one model as views into one buffer, and the optimizer that they feed.

    With one buffer the exchange between learners is a single call, and norm and clipping are one pass each.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, *, max_norm: float | None, collective: Collective, name: str
    ) -> None:
        """Points the gradients of the optimizer's parameters into the buffer.

        Args:
            optimizer: Optimizer whose parameters share one dtype and device.
            max_norm: Bound on the global norm; None never clips.
            collective: Sums the buffer over learners.
            name: Name of the model in warnings.
        """
        parameters = parameters_of(optimizer)
        assert len({(parameter.dtype, parameter.device) for parameter in parameters}) == 1, "one dtype, one device"
        self.optimizer = optimizer
        self.buffer = parameters[0].detach().new_zeros(sum(parameter.numel() for parameter in parameters))
        self._max_norm = max_norm
        self._collective = collective
        self._name = name
        start = 0
        for parameter in parameters:
            stop = start + parameter.numel()
            parameter.grad = self.buffer[start:stop].view_as(parameter)
            start = stop

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradients of a loss."""
        scaled_backward(self.optimizer, loss)

    def zero(self) -> None:
        """Sets the gradients to 0; call it before the first backward pass of a step."""
        self.buffer.zero_()

    def apply(self, lr: float) -> StepReport:
        """Sums the gradients over learners, clips them and steps with learning rate `lr`.

        Every learner must call it, even if its shard was empty.
        """
        gradient = self.optimizer.param_groups[0]["params"][0].grad
        assert gradient is not None, "gradients were set to None: they would be collected outside of the buffer"
        assert gradient.data_ptr() == self.buffer.data_ptr(), "gradients were replaced: the buffer has not seen them"
        self._collective.sum_(self.buffer)
        norm = math.sqrt(float(squared_norm([self.buffer])))
        return clip_and_step(self.optimizer, [self.buffer], norm, lr=lr, max_norm=self._max_norm, name=self._name)
