"""The clipped policy surrogate with separate bounds below and above.

    ratio_t = exp(log pi(a_t | s_t) - log pi_old(a_t | s_t))
    loss_t  = -min(ratio_t * A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A_t)

PPO (arXiv 1707.06347, eq. 7) has clip_low = clip_high; a larger clip_high ("clip-higher") is DAPO's
(arXiv 2503.14476, eq. 10), used by VAPO (arXiv 2504.05118).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

MAX_LOG_RATIO = 20.0
"""Log-ratios beyond ±20 are held there (with gradient 0): exp(20) = 5e8 is far from overflow in float32."""


class SurrogateTerms(NamedTuple):
    """Per-token terms of the clipped surrogate, all of the shape of its arguments."""

    loss: torch.Tensor
    """-min(ratio * A, clipped ratio * A); carries the gradient."""
    ratio: torch.Tensor
    """pi / pi_old, unclipped; detached."""
    clipped_low: torch.Tensor
    """bool: ratio below 1 - clip_low where A < 0, so the token has no gradient."""
    clipped_high: torch.Tensor
    """bool: ratio above 1 + clip_high where A > 0, so the token has no gradient."""


def clipped_surrogate(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> SurrogateTerms:
    """Returns the per-token terms of the module's equation.

    Args:
        log_probs: [...], log pi(a_t | s_t) in nats under the policy that is trained; gradients flow through it.
        old_log_probs: Same shape, log pi_old(a_t | s_t) in nats; taken as a constant.
        advantages: Same shape, A_t; taken as a constant. Padding, if any, is the caller's to mask.
        clip_low: Distance of the lower bound from 1, in [0, 1].
        clip_high: Distance of the upper bound from 1, at least 0.

    Raises:
        ValueError: the three shapes differ.
    """
    if not log_probs.shape == old_log_probs.shape == advantages.shape:
        raise ValueError(
            "log_probs, old_log_probs and advantages must have one shape, got "
            f"{tuple(log_probs.shape)}, {tuple(old_log_probs.shape)} and {tuple(advantages.shape)}"
        )
    advantages = advantages.detach()
    log_ratio = (log_probs - old_log_probs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    ratio = ratio.detach()
    return SurrogateTerms(
        loss=loss,
        ratio=ratio,
        clipped_low=(ratio < 1.0 - clip_low) & (advantages < 0),
        clipped_high=(ratio > 1.0 + clip_high) & (advantages > 0),
    )
