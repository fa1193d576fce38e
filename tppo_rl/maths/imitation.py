"""Imitation of correct responses: the loss that VAPO (arXiv 2504.05118) adds to PPO's.

loss_t = -log pi(a_t | s_t)     on tokens of correct responses, 0 on all others
"""

from __future__ import annotations

import torch


def positive_example_loss(log_probs: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    """Returns the per-token loss of the module's equation, [N]; its mean is over the tokens of correct responses alone.

    Args:
        log_probs: [N], log pi(a_t | s_t) in nats; gradients flow through it. Where `correct` is False it may hold
            anything.
        correct: bool [N], whether the token belongs to a correct response.

    Raises:
        ValueError: the shapes differ.
    """
    if log_probs.shape != correct.shape:
        raise ValueError(f"log_probs and correct differ in shape: {tuple(log_probs.shape)} and {tuple(correct.shape)}")
    return torch.where(correct, -log_probs, 0.0)
