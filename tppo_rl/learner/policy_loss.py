"""The policy's loss of every token: surrogate, divergence from a reference, entropy, imitation of right responses.

    loss_t = w_t * surrogate_t + kl_coef * KL_t - entropy_coef * H_t           window tokens
    loss_t = -min(pi/mu, importance_cap) * A_t * log pi(a_t)                   windows in hindsight, in the surrogate's place

with w_t = 1, or pi_old/mu (decoupled PPO), or that truncated at `importance_cap`. Fragments that the sequence mask takes
out have no surrogate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.maths import divergence
from tppo_rl.maths.surrogate import SurrogateTerms, clipped_surrogate, truncated_policy_gradient


@dataclass(frozen=True, eq=False)
class WindowTokens:
    """What is known of N window tokens before the forward pass; float32 [N] on the policy's device but where said."""

    behaviour_log_probs: torch.Tensor
    """nats, of the policy that sampled the token."""
    old_log_probs: torch.Tensor
    """nats: the ratio's denominator."""
    advantages: torch.Tensor
    importance_weights: torch.Tensor
    """w_t; 1 without a correction."""
    kept: torch.Tensor
    """bool: whether the sequence mask leaves the token's fragment in."""
    hindsight: torch.Tensor | None
    """bool: whether the token is trained a second time, on what its boundary value was off by; None where none is, so
    that a GPU need not be asked."""
    reference_log_probs: torch.Tensor | None
    """nats; None without a KL term in the loss."""


class PolicyTerms(NamedTuple):
    """Per-token terms of the policy's loss, all [N]."""

    loss: torch.Tensor
    """The sum of all terms; carries the gradient."""
    surrogate: SurrogateTerms
    kl_to_reference: torch.Tensor
    """Estimate of KL(policy || reference), nats; 0 without one. Detached."""


def policy_terms(
    log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, settings: UpdateSettings
) -> PolicyTerms:
    """Returns the terms of the module's equations.

    Args:
        log_probs: [N], nats, of the policy that is trained.
        entropy: [N], nats; carries a gradient where `entropy_coef` is above 0.
        tokens: The same N tokens.
        settings: Clips, coefficients, cap.
    """
    surrogate = clipped_surrogate(
        log_probs,
        tokens.old_log_probs,
        tokens.advantages,
        clip_low=settings.clip_low,
        clip_high=settings.clip_high,
        dual_clip=settings.dual_clip,
    )
    loss = surrogate.loss * tokens.importance_weights
    if tokens.hindsight is not None:
        again = truncated_policy_gradient(
            log_probs, tokens.behaviour_log_probs, tokens.advantages, cap=settings.importance_cap
        )
        loss = torch.where(tokens.hindsight, again, loss)
    loss = torch.where(tokens.kept, loss, 0.0)
    kl_to_reference = torch.zeros_like(log_probs)
    if tokens.reference_log_probs is not None:
        kl_to_reference = getattr(divergence, settings.kl_estimator)(tokens.reference_log_probs, log_probs)
        loss = loss + settings.kl_coef * kl_to_reference
    if settings.entropy_coef:
        loss = loss - settings.entropy_coef * entropy
    return PolicyTerms(loss, surrogate, kl_to_reference.detach())
