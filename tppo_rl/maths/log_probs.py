"""Log-probabilities of given tokens and entropies, from logits at a sampling temperature.

    log p(a) = z_a / tau - logsumexp_v(z_v / tau)
    H        = -sum_v p(v) * log p(v)

which is what vLLM returns with `logprobs_mode="processed_logprobs"` when neither top-k nor top-p cuts the
distribution. Logits of half precision are raised to float32 first, as vLLM does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch


class TokenLogProbs(NamedTuple):
    """Log-prob of each given token and entropy of the distribution that it was drawn from."""

    log_probs: torch.Tensor
    """[N], nats; carries the gradient."""
    entropy: torch.Tensor
    """[N], nats; detached unless its gradient was asked for."""


def token_log_probs(
    logits: torch.Tensor, tokens: torch.Tensor, *, temperature: float, entropy_gradient: bool = False
) -> TokenLogProbs:
    """Returns log-probs and entropies by the module's equations, float32 (float64 for float64 logits).

    Args:
        logits: [N, V], unscaled scores of the vocabulary at N positions. -inf masks an entry; its gradient is 0.
        tokens: int64 [N], the token taken at each position.
        temperature: tau, above 0.
        entropy_gradient: Whether the entropy carries the gradient. It keeps further [N, V] tensors for the backward
            pass.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.
    """
    if logits.ndim != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(f"logits must be [N, V] and tokens [N], got {tuple(logits.shape)} and {tuple(tokens.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive: greedy tokens have no log-prob gradient")
    scaled = logits if logits.dtype == torch.float64 else logits.float()
    if temperature != 1.0:
        scaled = scaled / temperature
    normaliser = scaled.logsumexp(dim=-1)
    log_probs = scaled.gather(1, tokens[:, None])[:, 0] - normaliser
    if entropy_gradient:
        # An entry masked with -inf has p = 0, where entr has an infinite slope and 0 * log 0 is NaN: its log p is
        # replaced before the product, which makes value and gradient 0.
        all_log_probs = scaled - normaliser[:, None]
        finite = torch.where(all_log_probs == -torch.inf, 0.0, all_log_probs)
        return TokenLogProbs(log_probs, -(all_log_probs.exp() * finite).sum(dim=-1))
    with torch.no_grad():
        # entr(p) = -p log p is 0 at p = 0, where a vocabulary entry masked with -inf would give 0 * inf.
        entropy = torch.special.entr((scaled - normaliser[:, None]).exp_()).sum(dim=-1)
    return TokenLogProbs(log_probs, entropy)
