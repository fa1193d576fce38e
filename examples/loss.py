"""A policy loss of your own: Simple Policy Optimization (arXiv 2401.16025).

tppo-rl train file examples/loss.yaml
"""

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.policy_losses import LossTerms, WindowTokens
from tppo_rl.maths.surrogate import bounded_log_ratio


def spo(
    log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options, *, epsilon: float = 0.2
) -> LossTerms:
    """-(r_t A_t - |A_t| (r_t - 1)^2 / (2 epsilon)): a penalty pulls every ratio back, where a clip lets go of it."""
    ratio = bounded_log_ratio(log_probs, tokens.old_log_probs).exp()
    penalty = tokens.advantages.abs() * (ratio - 1).square() / (2 * epsilon)
    return LossTerms(penalty - ratio * tokens.advantages, {"outside_fraction": (ratio - 1).abs() > epsilon})
