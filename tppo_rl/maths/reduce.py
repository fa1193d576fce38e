"""The one module that divides by counts.

The loss is a mean over the tokens of a whole (mini)batch, not over sequences (DAPO, arXiv 2503.14476, eq. 12). A
minibatch is spread over micro-batches and learners, so its mean is the sum of the parts' sums, each divided by the
count of the whole:

    mean = sum_parts ( sum_{t in part} x_t / n ),     n = number of tokens in all parts

A mean over responses of their token means (GRPO, arXiv 2402.03300, eq. 3) is such a sum too: each token is weighted with
1 / length of its response, and the sum is divided by the number of responses.
"""

from __future__ import annotations

import torch


def token_sum(per_token: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Returns the sum over all tokens, a scalar.

    Args:
        per_token: [...], one value per token.
        mask: bool of the same shape, True on tokens that count; elsewhere `per_token` may hold anything.

    Raises:
        ValueError: the mask has another shape.
    """
    if mask is None:
        return per_token.sum()
    if mask.shape != per_token.shape:
        raise ValueError(f"mask has shape {tuple(mask.shape)}, per_token {tuple(per_token.shape)}")
    return torch.where(mask, per_token, 0.0).sum()


def token_mean(per_token: torch.Tensor, global_count: float, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Returns this part's contribution to the token mean: its sum divided by the number of tokens in all parts.

    Args:
        per_token: [...], one value per token of this part.
        global_count: Number of tokens in all micro-batches and on all learners, above 0.
        mask: As in `token_sum`.

    Raises:
        ValueError: `global_count` is not positive, or the mask has another shape.
    """
    if global_count <= 0:
        raise ValueError(f"global_count={global_count} must be positive: there is no mean over no tokens")
    return token_sum(per_token, mask) / global_count


def response_weights(lengths: torch.Tensor) -> torch.Tensor:
    """Returns the weight 1 / length of each response's tokens, float32 [B]. It turns a token sum into a sum of token means.

    Args:
        lengths: int64 [B], number of tokens of each whole response; a response without tokens gets weight 0.

    Raises:
        ValueError: lengths that are not [B], or a negative one.
    """
    if lengths.ndim != 1 or (len(lengths) and int(lengths.min()) < 0):
        raise ValueError(f"lengths must be [B] and not negative, got {lengths}")
    return torch.where(lengths > 0, 1.0 / lengths.clamp(min=1).float(), 0.0)


def mean(total: float, count: float) -> float:
    """Returns total / count of sums that are already global.

    Raises:
        ValueError: `count` is not positive.
    """
    if count <= 0:
        raise ValueError(f"count={count} must be positive: there is no mean over no tokens")
    return total / count


def variance(total: float, squared_total: float, count: float) -> float:
    """Returns the population variance E[x^2] - E[x]^2 from global sums, never below 0.

    Args:
        total: Sum of x.
        squared_total: Sum of x^2. Both sums should be float64, because the difference cancels digits.
        count: Number of tokens, above 0.

    Raises:
        ValueError: `count` is not positive.
    """
    return max(0.0, mean(squared_total, count) - mean(total, count) ** 2)
