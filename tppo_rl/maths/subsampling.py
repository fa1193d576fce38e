"""Draws of fragments to train, for batches in which a pass over all fragments costs more than it teaches.

Many fragments hardly move a policy: the advantage is near 0, or the tokens are certain already. Fragment i is drawn with
probability p_i and its loss weighs 1 / p_i, so the expected gradient is that of the whole batch (Horvitz and Thompson 1952).
For a given number of tokens the variance of that gradient is least if

    p_i  ~  ||g_i|| / sqrt(n_i)          n_i tokens of the fragment (Cochran 1977, optimum allocation)

We use a bound on ||g_i|| in the output layer (importance sampling by gradient bounds, arXiv 1803.00942). The gradient of
log pi(a) with respect to the logits has a norm of at most sqrt(2) (1 - pi(a)), so

    ||g_i||  <=  sqrt(2) * sum_t |A_t| (1 - mu(a_t | s_t))

Here mu, the probability with which the token was sampled, stands for pi. It is known before any pass of the trainer, and
differs from pi as far as the token is stale.
"""

from __future__ import annotations

import numpy as np
import torch

UNIFORM_SHARE = 0.3
"""Fraction of the drawn tokens for which all fragments have one probability (a defensive mixture, Hesterberg 1995). No
weight is then above 1 / (`share` * this). Measured: with less, single fragments with a small bound dominate a gradient;
with more, the variance does not fall."""


def gradient_bounds(advantages: torch.Tensor, log_probs: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Returns sum_t |A_t| (1 - mu_t) of each fragment, float64 [B].

    Args:
        advantages: [B, T], A_t of the window's tokens.
        log_probs: [B, T], log mu_t in nats.
        mask: bool [B, T], True on tokens; elsewhere `advantages` and `log_probs` may hold anything.

    Raises:
        ValueError: the shapes differ.
    """
    if not advantages.shape == log_probs.shape == mask.shape:
        raise ValueError(
            "advantages, log_probs and mask differ in shape: "
            f"{tuple(advantages.shape)}, {tuple(log_probs.shape)} and {tuple(mask.shape)}"
        )
    bounds = advantages.double().abs() * -torch.expm1(log_probs.double().clamp(max=0.0))
    return torch.where(mask, bounds, 0.0).sum(dim=1)


def inclusion_probabilities(bounds: torch.Tensor, lengths: torch.Tensor, share: float) -> torch.Tensor:
    """Returns each fragment's probability of being trained, float64 [B]; the expected tokens are a fraction of all.

    Probabilities follow `bounds / sqrt(lengths)`, except for `UNIFORM_SHARE` of the tokens. A fragment whose probability
    would exceed 1 is certain, and the others divide the rest. A fragment without tokens has probability 1.

    Args:
        bounds: [B], bounds on the norm of each fragment's gradient, at least 0.
        lengths: int64 [B], number of tokens of each fragment.
        share: Fraction of the tokens to train, in (0, 1].

    Raises:
        ValueError: shapes that differ, a negative bound, or a fraction outside of (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share={share} must lie in (0, 1]")
    if bounds.ndim != 1 or bounds.shape != lengths.shape:
        raise ValueError(f"bounds and lengths must be [B], got {tuple(bounds.shape)} and {tuple(lengths.shape)}")
    if len(bounds) and not float(bounds.min()) >= 0:
        raise ValueError(f"bounds must be numbers of at least 0, got {float(bounds.min())}")
    counts = lengths.double()
    total = float(counts.sum())
    wanted = bounds.double() / counts.clamp(min=1).sqrt()
    # Each part is scaled to one expected token, so that the mixture is as well.
    spread = float((wanted * counts).sum())
    uniform = torch.full_like(wanted, 1.0 / max(total, 1.0))
    wanted = (1 - UNIFORM_SHARE) * wanted / spread + UNIFORM_SHARE * uniform if spread > 0 else uniform
    probabilities = torch.ones_like(wanted)
    open_, budget = counts > 0, share * total
    while bool(open_.any()):
        scale = (budget - float(counts[~open_].sum())) / float((wanted * counts)[open_].sum())
        certain = open_ & (wanted * scale >= 1)
        if not bool(certain.any()):
            probabilities[open_] = wanted[open_] * scale
            break
        open_ &= ~certain
    return probabilities


def systematic_sample(probabilities: torch.Tensor, generator: np.random.Generator) -> torch.Tensor:
    """Draws each index with its probability; returns the drawn indices, int64, ascending.

    This is systematic sampling (Madow 1949): one random start and equal steps along the probabilities, in random order. The
    number of drawn indices differs by less than one from the sum of the probabilities.

    Args:
        probabilities: float64 [B], each in (0, 1].
        generator: Draws the order and the start.
    """
    order = generator.permutation(len(probabilities))
    ends = np.cumsum(probabilities.numpy()[order])
    start = generator.random()
    # An index is drawn if one of start, start + 1, … lies within its part of the line. Rounding must not lose an index
    # that is certain.
    crossed = np.floor(ends - start) > np.floor(np.concatenate([[0.0], ends[:-1]]) - start)
    crossed |= probabilities.numpy()[order] >= 1
    return torch.from_numpy(np.sort(order[crossed]))
