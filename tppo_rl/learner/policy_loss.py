"""The policy's loss of every token: a registered surrogate, corrected; divergence from a reference; entropy.

    loss_t = w_t * surrogate_t + kl_coef * KL_t - entropy_coef * H_t           window tokens
    loss_t = -min(pi/mu, importance_cap) * A_t * log pi(a_t)                   windows in hindsight, in the surrogate's place

with w_t = 1, or pi_old/mu (decoupled PPO), or that truncated at `importance_cap`. Fragments that the sequence mask takes
out have no surrogate. The surrogate is one of `tppo_rl.learner.policy_losses`, or the user's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.policy_losses import LossTerms, WindowTokens
from tppo_rl.maths import divergence
from tppo_rl.maths.surrogate import truncated_policy_gradient

Surrogate = Callable[[torch.Tensor, torch.Tensor, WindowTokens, Options], LossTerms]
"""(log_probs [N], entropy [N], tokens, options) -> terms, see `tppo_rl.learner.policy_losses`."""


class PolicyTerms(NamedTuple):
    """Per-token terms of the policy's loss, all [N]."""

    loss: torch.Tensor
    """The sum of all terms; carries the gradient."""
    kl_to_reference: torch.Tensor
    """Estimate of KL(policy || reference), nats; 0 without one. Detached."""
    metrics: Mapping[str, torch.Tensor]
    """What the surrogate measures, by name. Detached."""


def policy_terms(
    surrogate: Surrogate,
    log_probs: torch.Tensor,
    entropy: torch.Tensor,
    tokens: WindowTokens,
    options: Options,
) -> PolicyTerms:
    """Returns the terms of the module's equations.

    Args:
        surrogate: What each token adds before it is corrected.
        log_probs: [N], nats, of the policy that is trained.
        entropy: [N], nats; carries a gradient where `entropy_coef` is above 0.
        tokens: The same N tokens.
        options: Clips, coefficients, cap.

    Raises:
        ValueError: the surrogate returns something else than N numbers for its loss or a metric.
    """
    per_token, metrics = surrogate(log_probs, entropy, tokens, options)
    _check_shapes(per_token, metrics, len(log_probs), options)
    loss = per_token * tokens.importance_weights
    if tokens.hindsight is not None:
        again = truncated_policy_gradient(
            log_probs, tokens.behavior_log_probs, tokens.advantages, cap=options.policy_loss.importance_cap
        )
        loss = torch.where(tokens.hindsight, again, loss)
    loss = torch.where(tokens.kept, loss, 0.0)
    kl_to_reference = torch.zeros_like(log_probs)
    if tokens.reference_log_probs is not None:
        kl_to_reference = getattr(divergence, options.policy_loss.kl_estimator)(tokens.reference_log_probs, log_probs)
        loss = loss + options.policy_loss.kl_coef * kl_to_reference
    if options.policy_loss.entropy_coef:
        loss = loss - options.policy_loss.entropy_coef * entropy
    return PolicyTerms(loss, kl_to_reference.detach(), {name: value.detach() for name, value in metrics.items()})


def _check_shapes(per_token: torch.Tensor, metrics: Mapping[str, torch.Tensor], count: int, options: Options) -> None:
    for name, value in {"its loss": per_token, **metrics}.items():
        if not isinstance(value, torch.Tensor) or value.shape != (count,):
            shape = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"policy_loss={options.policy_loss.policy_loss.name!r}: {name} must be a tensor with one number for each of "
                f"the {count} tokens, got {shape}"
            )
