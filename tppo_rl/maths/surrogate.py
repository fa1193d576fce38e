"""Policy losses: the clipped surrogate with separate bounds below and above, and the truncated policy gradient.

    ratio_t = exp(log pi(a_t | s_t) - log pi_old(a_t | s_t))
    loss_t  = -min(ratio_t * A_t, clip(ratio_t, 1 - clip_low, 1 + clip_high) * A_t)

PPO (arXiv 1707.06347, eq. 7) has clip_low = clip_high; a larger clip_high ("clip-higher") is DAPO's
(arXiv 2503.14476, eq. 10), used by VAPO (arXiv 2504.05118).

The minimum leaves the loss without a bound where A < 0 and the ratio is large. Dual clip (arXiv 1912.09729, eq. 5)
sets a bound, with a constant c > 1:

    loss_t <- min(loss_t, -c * A_t)                                             where A_t < 0

The gradient of V-trace (IMPALA, arXiv 1802.01561, section 4.2) cuts the weights from above instead of clipping:

    loss_t = -stop_gradient(min(pi(a_t | s_t) / mu(a_t | s_t), cap)) * A_t * log pi(a_t | s_t)
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from tppo_rl.maths.importance import truncated_importance_weights

MAX_LOG_RATIO = 20.0
"""Log-ratios beyond ±20 are held there (with gradient 0): exp(20) = 5e8 is far from overflow in float32."""


class SurrogateTerms(NamedTuple):
    """Per-token terms of the clipped surrogate, all of the shape of its arguments."""

    loss: torch.Tensor
    """-min(ratio * A, clipped ratio * A), dual-clipped if asked; carries the gradient."""
    ratio: torch.Tensor
    """pi / pi_old, unclipped; detached."""
    clipped_low: torch.Tensor
    """bool: ratio below 1 - clip_low where A < 0, so the token has no gradient."""
    clipped_high: torch.Tensor
    """bool: ratio above 1 + clip_high where A > 0, so the token has no gradient."""
    dual_clipped: torch.Tensor
    """bool: the bound c of the dual clip held the loss, so the token has no gradient. False everywhere without a bound."""


def bounded_log_ratio(log_probs: torch.Tensor, old_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns log pi - log pi_old within ±`MAX_LOG_RATIO`, in the shape of both; the latter is taken as a constant."""
    return (log_probs - old_log_probs.detach()).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    log_probs: torch.Tensor,
    old_log_probs: torch.Tensor,
    advantages: torch.Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
) -> SurrogateTerms:
    """Returns the per-token terms of the module's first two equations.

    Args:
        log_probs: [...], log pi(a_t | s_t) in nats under the policy that is trained; gradients flow through it.
        old_log_probs: Same shape, log pi_old(a_t | s_t) in nats; taken as a constant.
        advantages: Same shape, A_t; taken as a constant. Padding, if any, is the caller's to mask.
        clip_low: Distance of the lower bound from 1, in [0, 1].
        clip_high: Distance of the upper bound from 1, at least 0.
        dual_clip: Bound c on the ratio where A < 0, above 1; None for no bound.

    Raises:
        ValueError: the three shapes differ, or `dual_clip` is not above 1.
    """
    if not log_probs.shape == old_log_probs.shape == advantages.shape:
        raise ValueError(
            "log_probs, old_log_probs and advantages must have one shape, got "
            f"{tuple(log_probs.shape)}, {tuple(old_log_probs.shape)} and {tuple(advantages.shape)}"
        )
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip={dual_clip} must be above 1: a lower bound would hold tokens that did not move")
    advantages = advantages.detach()
    ratio = bounded_log_ratio(log_probs, old_log_probs).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    loss = -torch.minimum(ratio * advantages, clipped * advantages)
    dual_clipped = torch.zeros_like(loss, dtype=torch.bool)
    if dual_clip is not None:
        bound = -dual_clip * advantages
        dual_clipped = (advantages < 0) & (loss > bound)
        # `where` rather than `minimum`, which would let half the gradient through at equality.
        loss = torch.where(dual_clipped, bound, loss)
    ratio = ratio.detach()
    return SurrogateTerms(
        loss=loss,
        ratio=ratio,
        clipped_low=(ratio < 1.0 - clip_low) & (advantages < 0),
        clipped_high=(ratio > 1.0 + clip_high) & (advantages > 0),
        dual_clipped=dual_clipped,
    )


def truncated_policy_gradient(
    log_probs: torch.Tensor, behavior_log_probs: torch.Tensor, advantages: torch.Tensor, *, cap: float
) -> torch.Tensor:
    """Returns the per-token loss of the module's last equation, in the shape of the arguments.

    Args:
        log_probs: [...], log pi in nats under the policy that is trained; gradients flow through it, but not through the
            weight.
        behavior_log_probs: Same shape, log mu in nats of the policy that sampled the token; taken as a constant.
        advantages: Same shape, A_t; taken as a constant. Padding, if any, is the caller's to mask.
        cap: Largest weight, above 0 (rho-bar of the paper, 1 there).

    Raises:
        ValueError: the three shapes differ, or `cap` is not positive.
    """
    if not log_probs.shape == behavior_log_probs.shape == advantages.shape:
        raise ValueError(
            "log_probs, behavior_log_probs and advantages must have one shape, got "
            f"{tuple(log_probs.shape)}, {tuple(behavior_log_probs.shape)} and {tuple(advantages.shape)}"
        )
    weights = truncated_importance_weights(log_probs, behavior_log_probs, cap=cap)
    return -weights * advantages.detach() * log_probs
