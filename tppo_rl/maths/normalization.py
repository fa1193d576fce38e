"""Scaling of per-token values by the moments of their group, over all learners that hold a part of it.

    mean_g = S_g / n_g,     std_g = sqrt( Q_g / n_g - mean_g^2 )       n, S, Q: count, sum, sum of squares of tokens

The three moments of a batch are the sums of its parts' moments, so learners add theirs up and scale with the total.
One group for all rows gives the usual normalization of advantages. One group for each environment gives equal weight to
tasks whose rewards differ in size.
"""

from __future__ import annotations

import torch

_MIN_STD = 1e-6
"""A standard deviation up to this, absolute or as a fraction of the root mean square, counts as rounding error."""


def group_moments(values: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """Returns count, sum and sum of squares over the tokens of each group's rows, float64 [num_groups, 3].

    Args:
        values: [B, T]; taken as constants. Padding may hold anything, NaN included.
        mask: bool [B, T], True on tokens that count.
        groups: int64 [B], the group of each row, between 0 and `num_groups` - 1.
        num_groups: Number of groups; one without tokens has three zeros.

    Raises:
        ValueError: shapes that do not fit together, or a group outside 0 .. num_groups - 1.
    """
    _check(values, mask, groups, num_groups)
    wide = torch.where(mask, values.detach(), 0.0).double()
    rows = torch.stack([mask.sum(dim=1).double(), wide.sum(dim=1), wide.square().sum(dim=1)], dim=1)
    return rows.new_zeros(num_groups, 3).index_add(0, groups, rows)


def normalize(
    values: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor, moments: torch.Tensor, *, center: bool
) -> torch.Tensor:
    """Returns (x - mean_g) / std_g, or x / std_g, [B, T] in the dtype of `values`; padding is exactly 0.

    A group without spread is divided by 1 instead. Its std_g is at most 1e-6, or at most 1e-6 of sqrt(Q_g / n_g):
    rounding leaves that much of equal values far from 0.

    Args:
        values: [B, T]; gradients flow through it. Padding may hold anything, NaN included.
        mask: bool [B, T], True on tokens that count.
        groups: int64 [B], the group of each row.
        moments: float64 [G, 3], sum of `group_moments` over all parts of the batch; taken as a constant.
        center: Whether to subtract the mean.

    Raises:
        ValueError: shapes that do not fit together, or a group outside 0 .. G - 1.
    """
    if moments.ndim != 2 or moments.shape[1] != 3:
        raise ValueError(f"moments must be [G, 3], got {tuple(moments.shape)}")
    _check(values, mask, groups, len(moments))
    counts, sums, squares = moments.detach().double().unbind(dim=1)
    means = sums / counts.clamp(min=1.0)
    mean_squares = squares / counts.clamp(min=1.0)
    stds = (mean_squares - means.square()).clamp(min=0.0).sqrt()
    stds = torch.where(stds <= _MIN_STD * mean_squares.sqrt().clamp(min=1.0), 1.0, stds)
    wide = values.double()
    if center:
        wide = wide - means[groups][:, None]
    return torch.where(mask, wide / stds[groups][:, None], 0.0).to(values.dtype)


def _check(values: torch.Tensor, mask: torch.Tensor, groups: torch.Tensor, num_groups: int) -> None:
    if values.ndim != 2 or mask.shape != values.shape or groups.shape != values.shape[:1]:
        raise ValueError(
            "values and mask must be [B, T] and groups [B], got "
            f"{tuple(values.shape)}, {tuple(mask.shape)} and {tuple(groups.shape)}"
        )
    if len(groups) and not (int(groups.min()) >= 0 and int(groups.max()) < num_groups):
        raise ValueError(f"groups must lie in 0 .. {num_groups - 1}, got {int(groups.min())} .. {int(groups.max())}")
