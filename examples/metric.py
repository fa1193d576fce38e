"""A metric of your own: which fraction of the tokens the policy was nearly certain of, as `policy/certain_fraction`.

tppo-rl train file examples/metric.yaml
"""

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.policy_losses import LossTerms, WindowTokens, clipped


def clipped_with_certainty(
    log_probs: torch.Tensor, entropy: torch.Tensor, tokens: WindowTokens, options: Options, *, above: float = 0.99
) -> LossTerms:
    """The clipped surrogate, unchanged, with one more mean over all tokens of the update."""
    terms = clipped(log_probs, entropy, tokens, options)
    return LossTerms(terms.per_token, {**terms.metrics, "certain_fraction": log_probs.exp() > above})
