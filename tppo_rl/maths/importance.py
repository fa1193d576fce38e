"""Importance weights of sampled tokens, and how many tokens they are worth."""

from __future__ import annotations

import torch

_MAX_LOG_WEIGHT = 20.0


def importance_weights(log_probs: torch.Tensor, behaviour_log_probs: torch.Tensor) -> torch.Tensor:
    """Returns w_t = pi(a_t | s_t) / mu(a_t | s_t) per token, within exp(±20), in the shape of the arguments.

    Args:
        log_probs: [...], log pi in nats, of the policy that is trained.
        behaviour_log_probs: Same shape, log mu in nats, of the policy that sampled the token.

    Raises:
        ValueError: the shapes differ.
    """
    if log_probs.shape != behaviour_log_probs.shape:
        raise ValueError(
            "log_probs and behaviour_log_probs differ in shape: "
            f"{tuple(log_probs.shape)} and {tuple(behaviour_log_probs.shape)}"
        )
    return (log_probs - behaviour_log_probs).clamp(-_MAX_LOG_WEIGHT, _MAX_LOG_WEIGHT).exp()


def effective_sample_size(weight_sum: float, squared_weight_sum: float) -> float:
    """Returns (sum w)^2 / sum w^2 (Kish 1965): n for n equal weights, 1 where one weight outweighs all others.

    It takes sums rather than tokens, so that the tokens may lie on several learners.

    Args:
        weight_sum: Sum of the weights, in tokens.
        squared_weight_sum: Sum of their squares, above 0.

    Raises:
        ValueError: `squared_weight_sum` is not positive.
    """
    if squared_weight_sum <= 0:
        raise ValueError(f"squared_weight_sum={squared_weight_sum} must be positive: there is no weight to count")
    return weight_sum**2 / squared_weight_sum
