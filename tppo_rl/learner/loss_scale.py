"""Loss scaling (arXiv 1710.03740): gradients in float16 are computed of a loss times a factor, so that small ones are not 0.

The factor is halved where a gradient overflows, which costs that optimizer step, and doubled after many steps that did not. It
stands in the optimizer's parameter groups, so checkpoints have it. Weights and their gradients are float32.
"""

from __future__ import annotations

import torch

FIRST_SCALE = 2.0**16
GROWTH_INTERVAL = 2000
"""Optimizer steps without an overflow after which the factor is doubled."""
_SCALE, _STEPS = "loss_scale", "steps_without_overflow"


def scale_losses(optimizer: torch.optim.Optimizer) -> None:
    """Makes the losses of an optimizer's parameters scaled ones."""
    _begin_where_missing(optimizer)
    # A checkpoint of a run in another dtype has no factor, and its parameter groups take the place of these.
    optimizer.register_load_state_dict_post_hook(_begin_where_missing)


def loss_scale(optimizer: torch.optim.Optimizer) -> float:
    """Returns the factor of the loss, a power of 2: 1 without scaling."""
    return float(optimizer.param_groups[0].get(_SCALE, 1.0))


def _begin_where_missing(optimizer: torch.optim.Optimizer) -> None:
    for group in optimizer.param_groups:
        group.setdefault(_SCALE, FIRST_SCALE)
        group.setdefault(_STEPS, 0)


def adapt_loss_scale(optimizer: torch.optim.Optimizer, *, overflowed: bool) -> None:
    """Takes note of an optimizer step's gradient; the factor does not fall below 1. Changes nothing without scaling."""
    for group in optimizer.param_groups:
        if _SCALE not in group:
            continue
        group[_STEPS] = 0 if overflowed else group[_STEPS] + 1
        if overflowed:
            group[_SCALE] = max(1.0, group[_SCALE] / 2)
        elif group[_STEPS] >= GROWTH_INTERVAL:
            group[_SCALE], group[_STEPS] = 2 * group[_SCALE], 0
