"""Returns, the regression targets of a critic.

    G_t         = sum_{k=0}^{l-1-t} gamma^k * r_{t+k}     Monte-Carlo, the targets of Truncated PPO
    G^lambda_t  = V(s_t) + A_t                            lambda-return; A is GAE (arXiv 1506.02438, eq. 16)

The first does not bootstrap (lambda = 1 for the critic: VC-PPO, arXiv 2503.01491), so it needs whole episodes.
The second also takes windows: it puts a given value at the boundary, as `advantages.egae` does.
"""

from __future__ import annotations

import torch

from tppo_rl.maths.advantages import egae


def monte_carlo_returns(rewards: torch.Tensor, lengths: torch.Tensor, *, gamma: float) -> torch.Tensor:
    """Returns G_t of the module's equation, [B, T] in the dtype of `rewards`; padding is exactly 0.

    Args:
        rewards: [B, T], r_t of each sampled token of a finished episode. Padding may hold anything, NaN included.
        lengths: int64 [B], number of tokens in each row, between 0 and T.
        gamma: Discount of each sampled token.

    Raises:
        ValueError: shapes that do not fit together, or a length outside 0 .. T.
    """
    if rewards.ndim != 2 or lengths.shape != rewards.shape[:1]:
        raise ValueError(
            f"rewards must be [B, T] and lengths [B], got {tuple(rewards.shape)} and {tuple(lengths.shape)}"
        )
    if len(lengths) and not (int(lengths.min()) >= 0 and int(lengths.max()) <= rewards.shape[1]):
        raise ValueError(
            f"lengths must lie in 0 .. {rewards.shape[1]}, got {int(lengths.min())} .. {int(lengths.max())}"
        )
    num_steps = rewards.shape[1]
    if num_steps == 0:
        return torch.zeros_like(rewards)
    valid = torch.arange(num_steps, device=rewards.device) < lengths[:, None]
    rewards = torch.where(valid, rewards, 0.0)
    running = torch.zeros_like(rewards[:, 0])
    returns = []
    for reward in reversed(rewards.T.contiguous().unbind(0)):
        running = reward + gamma * running
        returns.append(running)
    return torch.stack(returns[::-1], dim=1)


def lambda_returns(
    rewards: torch.Tensor,
    values: torch.Tensor,
    boundary_values: torch.Tensor,
    lengths: torch.Tensor,
    *,
    gamma: float,
    lambda_: float | torch.Tensor,
) -> torch.Tensor:
    """Returns G^lambda_t of the module's equation, [B, T] in the dtype of `values`; padding is exactly 0.

    Arguments and errors are those of `advantages.egae`; B may be 0.
    """
    advantages = egae(rewards, values, boundary_values, lengths, gamma=gamma, lambda_=lambda_)
    valid = torch.arange(values.shape[1], device=values.device) < lengths[:, None]
    return torch.where(valid, advantages + values, 0.0)
