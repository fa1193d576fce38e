"""Extended generalised advantage estimation: advantages on windows of unfinished responses.

Truncated PPO (arXiv 2506.15050) estimates the advantages of a window of l tokens whose response goes on after the
window by holding the value of the last state:

    delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)                      t = 0 .. l-1
    A_t     = sum_{k=0}^{l-1-t} (gamma * lambda)^k * delta_{t+k}     with V(s_l) := V(s_{l-1})   ("hold")

Where the window ends because the episode is over, V(s_l) := 0 and A is ordinary GAE (arXiv 1506.02438, eq. 16).
An episode that reached the response cap is over as well: its reward has been given, nothing follows.

Where we differ: the value put at the boundary is an argument. `boundary_values` chooses it: the paper's "hold", or
"bootstrap", the critic's own V(s_l), which a causal critic gives for nothing with the state after the last token.
"""

from __future__ import annotations

from typing import Literal

import torch

BoundaryValue = Literal["hold", "bootstrap"]


def extended_gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    boundary_values: torch.Tensor,
    lengths: torch.Tensor,
    *,
    gamma: float,
    lambda_: float | torch.Tensor,
) -> torch.Tensor:
    """Returns the advantages A_t of the module's equation, [B, T] in the dtype of `values`; padding is exactly 0.

    Args:
        rewards: [B, T], r_t of each sampled token. Padding may hold anything, NaN included.
        values: [B, T], V(s_t), the value of the state that token t was sampled in. Padding as above.
        boundary_values: [B], V(s_l) of the state after the last token: 0 where the episode is over.
        lengths: int64 [B], number l of tokens in each row, between 1 and T.
        gamma: Discount of each sampled token.
        lambda_: Decay of the estimator; a tensor [B] gives each row its own (length-adaptive lambda).

    Raises:
        ValueError: shapes that do not fit together, or a length outside 1 .. T.
    """
    valid = _check_rows(values, lengths, rewards=rewards)
    if boundary_values.shape != lengths.shape:
        raise ValueError(f"boundary_values must have shape {tuple(lengths.shape)}, got {tuple(boundary_values.shape)}")
    num_steps = values.shape[1]
    if num_steps == 0:
        return torch.zeros_like(values)
    last = torch.arange(num_steps, device=values.device) == lengths[:, None] - 1
    following = torch.cat([values[:, 1:], boundary_values[:, None]], dim=1)
    following = torch.where(last, boundary_values[:, None], following)
    deltas = torch.where(valid, rewards + gamma * following - values, 0.0)

    # Rows of the transposed tensor are contiguous, and 0 in the padding leaves the running sum at 0 until the last
    # token, so rows of different lengths need no special case.
    decay = gamma * lambda_
    running = torch.zeros_like(deltas[:, 0])
    advantages = []
    for delta in reversed(deltas.T.contiguous().unbind(0)):
        running = delta + decay * running
        advantages.append(running)
    return torch.stack(advantages[::-1], dim=1)


def boundary_values(
    values: torch.Tensor,
    next_values: torch.Tensor,
    lengths: torch.Tensor,
    finished: torch.Tensor,
    mode: BoundaryValue,
) -> torch.Tensor:
    """Returns V(s_l) for `extended_gae`, [B] in the dtype of `values`.

    It is 0 where the window finished its episode, whether terminated or truncated; elsewhere V(s_{l-1}) for "hold"
    (arXiv 2506.15050) and `next_values` for "bootstrap".

    Args:
        values: [B, T], V(s_t). Padding may hold anything.
        next_values: [B], the critic's V(s_l) of the state after the last token. Read by "bootstrap" only.
        lengths: int64 [B], number of tokens in each row, between 1 and T.
        finished: bool [B], whether the last token of the row ended its episode.
        mode: "hold" or "bootstrap".

    Raises:
        ValueError: an unknown mode, shapes that do not fit together, or a length outside 1 .. T.
    """
    _check_rows(values, lengths)
    if next_values.shape != lengths.shape or finished.shape != lengths.shape:
        raise ValueError(
            f"next_values and finished must have shape {tuple(lengths.shape)}, "
            f"got {tuple(next_values.shape)} and {tuple(finished.shape)}"
        )
    if mode == "hold":
        open_values = values.gather(1, lengths[:, None] - 1)[:, 0] if len(lengths) else next_values
    elif mode == "bootstrap":
        open_values = next_values
    else:
        raise ValueError(f"boundary_value={mode!r} is unknown: use 'hold' or 'bootstrap'")
    return torch.where(finished, 0.0, open_values)


def _check_rows(values: torch.Tensor, lengths: torch.Tensor, **others: torch.Tensor) -> torch.Tensor:
    """Returns bool [B, T], True on tokens and False on padding, once the shapes are known to fit."""
    if values.ndim != 2 or lengths.shape != values.shape[:1]:
        raise ValueError(f"values must be [B, T] and lengths [B], got {tuple(values.shape)} and {tuple(lengths.shape)}")
    for name, other in others.items():
        if other.shape != values.shape:
            raise ValueError(f"{name} must have the shape {tuple(values.shape)} of values, got {tuple(other.shape)}")
    if len(lengths) and not (int(lengths.min()) >= 1 and int(lengths.max()) <= values.shape[1]):
        raise ValueError(
            f"lengths must lie in 1 .. {values.shape[1]}, got {int(lengths.min())} .. {int(lengths.max())}"
        )
    return torch.arange(values.shape[1], device=values.device) < lengths[:, None]
