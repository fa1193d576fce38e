"""Policy losses by name: what each token adds to the loss, before corrections, KL and entropy (`policy_loss`).

A loss is a function `(log_probs, entropy, tokens, options) -> LossTerms` of N window tokens: their log-probs and entropies in
nats, float32 [N], the former with a gradient, and what was known of them before (`WindowTokens`). Settings of its own are
keyword-only parameters. Those of this file are registered by name (`tppo_rl.core.registry.POLICY_LOSSES`); one of your own is
named by its place, `policy_loss: my_module:my_loss`.

    clipped    -min(r_t A_t, clip(r_t, 1 - clip_low, 1 + clip_high) A_t)             PPO, arXiv 1707.06347 eq. 7
    cispo      -min(r_t, cap) A_t log pi(a_t)        the weight without a gradient    arXiv 2506.13585 eq. 4
    gspo       -min(s A_t, clip(s, 1 - clip_low, 1 + clip_high) A_t)                  arXiv 2507.18071 eq. 5

with r_t = pi(a_t) / pi_old(a_t) and s = exp(mean over the response of log r_t). The paper of CISPO has a lower bound, too,
which it sets out of reach. GSPO bounds s far closer to 1 than PPO its ratios: 3e-4 and 4e-4 in the paper.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch

from tppo_rl.config.options import Options
from tppo_rl.maths.sequence_ratio import sequence_log_ratio
from tppo_rl.maths.surrogate import bounded_log_ratio, clipped_surrogate, truncated_policy_gradient


@dataclass(frozen=True, eq=False)
class WindowTokens:
    """What is known of N window tokens before the forward pass; float32 [N] on the policy's device but where said."""

    behavior_log_probs: torch.Tensor
    """nats, of the policy that sampled the token."""
    old_log_probs: torch.Tensor
    """nats: the ratio's denominator."""
    advantages: torch.Tensor
    importance_weights: torch.Tensor
    """What the surrogate is multiplied with; 1 without a correction."""
    kept: torch.Tensor
    """bool: whether the sequence mask leaves the token's fragment in."""
    hindsight: torch.Tensor | None
    """bool: whether the token is trained a second time, on what its boundary value was off by; None where none is, so
    that a GPU need not be asked."""
    reference_log_probs: torch.Tensor | None
    """nats; None without a KL term in the loss."""
    fragments: torch.Tensor | None = None
    """int64 [N]: which fragment of the micro-batch each token is of, from 0; tokens of one stand together. None: all of
    one."""


class LossTerms(NamedTuple):
    """What a policy loss returns."""

    per_token: torch.Tensor
    """[N]: the loss of each token; carries the gradient."""
    metrics: Mapping[str, torch.Tensor]
    """[N] each, by name: what is to be averaged over all tokens of the update and logged as `policy/<name>`."""


def clipped(log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options) -> LossTerms:
    """PPO's clipped surrogate, with separate bounds and an optional dual clip (`tppo_rl.maths.surrogate`)."""
    surrogate = clipped_surrogate(
        log_probs,
        tokens.old_log_probs,
        tokens.advantages,
        clip_low=options.policy_loss.clip_low,
        clip_high=options.policy_loss.clip_high,
        dual_clip=options.policy_loss.dual_clip,
    )
    return LossTerms(
        surrogate.loss,
        {
            "clip_fraction_low": surrogate.clipped_low,
            "clip_fraction_high": surrogate.clipped_high,
            "dual_clip_fraction": surrogate.dual_clipped,
        },
    )


def cispo(
    log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options, *, cap: float = 5.0
) -> LossTerms:
    """Policy gradient with weights cut from above: no token loses its gradient (arXiv 2506.13585).

    Args:
        log_probs: [N].
        entropy: [N], not used.
        tokens: The same tokens.
        options: Not used.
        cap: Largest weight, 1 + eps_high in the paper; arXiv 2510.13786 uses 4 to 8.
    """
    loss = truncated_policy_gradient(log_probs, tokens.old_log_probs, tokens.advantages, cap=cap)
    ratio = bounded_log_ratio(log_probs.detach(), tokens.old_log_probs).exp()
    return LossTerms(loss, {"cap_fraction": ratio > cap})


def gspo(log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options) -> LossTerms:
    """The clipped surrogate with the ratio of the whole response in place of the token's (arXiv 2507.18071)."""
    log_ratio = bounded_log_ratio(log_probs, tokens.old_log_probs)
    of_response = sequence_log_ratio(log_ratio, tokens.fragments)
    surrogate = clipped_surrogate(
        of_response,
        torch.zeros_like(of_response),
        tokens.advantages,
        clip_low=options.policy_loss.clip_low,
        clip_high=options.policy_loss.clip_high,
        dual_clip=options.policy_loss.dual_clip,
    )
    return LossTerms(
        surrogate.loss,
        {
            "clip_fraction_low": surrogate.clipped_low,
            "clip_fraction_high": surrogate.clipped_high,
            "dual_clip_fraction": surrogate.dual_clipped,
            "sequence_ratio": surrogate.ratio,
        },
    )
