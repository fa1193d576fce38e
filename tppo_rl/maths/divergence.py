"""Per-token estimators of KL(q || p) from tokens sampled by q.

With log_ratio = log p(a) - log q(a), a ~ q (J. Schulman, "Approximating KL divergence", 2020):

    k1 = -log_ratio                      unbiased, of either sign
    k2 = log_ratio^2 / 2                 biased, low variance, never negative
    k3 = exp(log_ratio) - 1 - log_ratio  unbiased, low variance, never negative

Each takes `log_probs` (log p, nats) and `sampling_log_probs` (log q, nats) of one shape and returns that shape.
Gradients flow through both arguments. Log-ratios are held within ±20 before exp.
"""

from __future__ import annotations

import torch

_MAX_LOG_RATIO = 20.0


def k1(log_probs: torch.Tensor, sampling_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns -log_ratio per token."""
    return -_log_ratio(log_probs, sampling_log_probs)


def k2(log_probs: torch.Tensor, sampling_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns log_ratio^2 / 2 per token."""
    return 0.5 * _log_ratio(log_probs, sampling_log_probs).square()


def k3(log_probs: torch.Tensor, sampling_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns exp(log_ratio) - 1 - log_ratio per token."""
    log_ratio = _log_ratio(log_probs, sampling_log_probs)
    # expm1 keeps the digits that exp(x) - 1 loses near 0, where nearly all tokens are.
    return torch.expm1(log_ratio.clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)) - log_ratio


def _log_ratio(log_probs: torch.Tensor, sampling_log_probs: torch.Tensor) -> torch.Tensor:
    if log_probs.shape != sampling_log_probs.shape:
        raise ValueError(
            "log_probs and sampling_log_probs differ in shape: "
            f"{tuple(log_probs.shape)} and {tuple(sampling_log_probs.shape)}"
        )
    return log_probs - sampling_log_probs
