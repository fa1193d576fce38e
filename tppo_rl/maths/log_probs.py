"""Log-probabilities of given tokens and entropies, from logits at a sampling temperature.

    log p(a) = z_a / tau - logsumexp_v(z_v / tau)
    H        = -sum_v p(v) * log p(v)

vLLM returns the same with `logprobs_mode="processed_logprobs"` if neither top-k nor top-p cuts the distribution.
Logits of half precision are raised to float32 first, as vLLM does.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

_BLOCK = {"cpu": 2**20}
"""Entries of [N, V] to compute at once, by device: this many stay in a CPU's cache."""
_BLOCK_ELSEWHERE = 2**24
"""The same on other devices, where starting a kernel costs more than computing a small block."""


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
        entropy_gradient: Whether the entropy carries the gradient.

    Raises:
        ValueError: shapes that do not fit together, or a temperature that is not positive.
    """
    if logits.ndim != 2 or tokens.shape != logits.shape[:1]:
        raise ValueError(f"logits must be [N, V] and tokens [N], got {tuple(logits.shape)} and {tuple(tokens.shape)}")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive: greedy tokens have no log-prob gradient")
    log_probs, entropy = _TokenLogProbs.apply(logits, tokens, temperature, entropy_gradient)
    return TokenLogProbs(log_probs, entropy)


class _TokenLogProbs(torch.autograd.Function):
    """Keeps the logits alone at size [N, V], and allocates their gradient alone at that size.

    d log p(a) / d z_v = (1[v = a] - p(v)) / tau
    dH / d z_v         = -p(v) * (log p(v) + H) / tau
    """

    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        normalizer = torch.empty(len(logits), dtype=dtype, device=logits.device)
        log_probs, entropy = torch.empty_like(normalizer), torch.empty_like(normalizer)
        for rows in _blocks(logits):
            scaled = _scaled(logits[rows], temperature, dtype)
            normalizer[rows] = scaled.logsumexp(dim=-1)
            log_probs[rows] = scaled.gather(1, tokens[rows, None])[:, 0] - normalizer[rows]
            # entr(p) = -p log p is 0 at p = 0, where a vocabulary entry masked with -inf would give 0 * inf.
            entropy[rows] = torch.special.entr((scaled - normalizer[rows, None]).exp_()).sum(dim=-1)
        ctx.save_for_backward(logits, tokens, normalizer, entropy)
        ctx.temperature, ctx.entropy_gradient = temperature, entropy_gradient
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return log_probs, entropy

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, log_prob_gradient: torch.Tensor, entropy_gradient: torch.Tensor
    ) -> tuple[torch.Tensor, None, None, None]:
        logits, tokens, normalizer, entropy = ctx.saved_tensors
        gradient = torch.empty_like(logits)
        for rows in _blocks(logits):
            all_log_probs = _scaled(logits[rows], ctx.temperature, normalizer.dtype) - normalizer[rows, None]
            probs = all_log_probs.exp()
            slopes = -log_prob_gradient[rows, None]
            if ctx.entropy_gradient:
                # An entry masked with -inf has p = 0, and 0 * -inf is NaN.
                finite = all_log_probs.masked_fill_(all_log_probs == -torch.inf, 0.0)
                slopes = slopes - entropy_gradient[rows, None] * finite.add_(entropy[rows, None])
            of_logits = probs.mul_(slopes)
            of_logits.scatter_add_(1, tokens[rows, None], log_prob_gradient[rows, None])
            gradient[rows] = of_logits.div_(ctx.temperature)
        return gradient, None, None, None


def _scaled(logits: torch.Tensor, temperature: float, dtype: torch.dtype) -> torch.Tensor:
    return logits.to(dtype) if temperature == 1.0 else logits.to(dtype) / temperature


def _blocks(logits: torch.Tensor) -> list[slice]:
    step = max(1, _BLOCK.get(logits.device.type, _BLOCK_ELSEWHERE) // logits.shape[1])
    return [slice(start, start + step) for start in range(0, len(logits), step)]
