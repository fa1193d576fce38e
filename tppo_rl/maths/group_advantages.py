"""Advantages of whole responses, relative to other responses to the same prompt.

    A_i = R_i - mean(R_group)                                    Dr. GRPO (arXiv 2503.20783)
    A_i = (R_i - mean(R_group)) / (std(R_group) + 1e-4)          GRPO (arXiv 2402.03300, section 4.1.2)

The papers leave std and its guard open; here, as in TRL, std divides by n - 1 and the guard is added to it.
"""

from __future__ import annotations

import torch

_MIN_STD = 1e-4


def group_relative_advantages(returns: torch.Tensor, groups: torch.Tensor, *, scale: bool) -> torch.Tensor:
    """Returns A_i of the module's equations, [B] in the dtype of `returns`; 0 in a group of one response.

    Args:
        returns: [B], R_i of each response; taken as constants.
        groups: int64 [B], label 0 .. G-1 of each response's group; a group is the responses to one prompt. Labels stand
            in any order, and a label may have no response.
        scale: Whether to divide by the group's standard deviation.

    Raises:
        ValueError: shapes that do not fit together, or a negative label.
    """
    if returns.ndim != 1 or groups.shape != returns.shape:
        raise ValueError(f"returns and groups must be [B], got {tuple(returns.shape)} and {tuple(groups.shape)}")
    if not len(groups):
        return torch.zeros_like(returns)
    if int(groups.min()) < 0:
        raise ValueError(f"groups must not be negative, got {int(groups.min())}")
    counts = torch.bincount(groups)
    # float64 sums: equal returns must give a difference of exactly 0 or far below the guard, in any order.
    wide = returns.detach().double()
    sums = wide.new_zeros(len(counts)).index_add(0, groups, wide)
    centerd = wide - (sums / counts.clamp(min=1))[groups]
    if scale:
        squares = wide.new_zeros(len(counts)).index_add(0, groups, centerd.square())
        std = (squares / (counts - 1).clamp(min=1)).sqrt()
        centerd = centerd / (std + _MIN_STD)[groups]
    return torch.where(counts[groups] > 1, centerd, 0.0).to(returns.dtype)
