"""Which fragments of a batch the policy trains, and what each counts for.

With `policy_token_share` below 1 fragments are drawn by a bound on their gradient (`tppo_rl.maths.subsampling`). Each
learner draws from its own share of the batch; what it weighs by does not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.maths.subsampling import gradient_bounds, inclusion_probabilities, systematic_sample


@dataclass(frozen=True, eq=False)
class DrawnFragments:
    """A part of a batch of B fragments."""

    rows: torch.Tensor
    """int64 [N], rising: the fragments that were drawn."""
    weights: torch.Tensor
    """float32 [B]: one over the chance of each fragment; of those that were not drawn, too."""


def all_fragments(batch: TrainBatch) -> DrawnFragments:
    """Returns the whole batch."""
    return DrawnFragments(torch.arange(len(batch)), torch.ones(len(batch)))


def drawn_fragments(
    batch: TrainBatch, advantages: torch.Tensor, share: float, generator: np.random.Generator
) -> DrawnFragments:
    """Draws about a share of the window tokens of a batch; 1 draws all of it and takes no random number.

    Args:
        batch: May be empty.
        advantages: float32 [B, T], of the window's tokens.
        share: Of the tokens, in (0, 1].
        generator: Draws the fragments.
    """
    if share == 1:
        return all_fragments(batch)
    bounds = gradient_bounds(advantages, batch.behaviour_log_probs, batch.window.mask)
    chances = inclusion_probabilities(bounds, batch.window.lengths, share)
    return DrawnFragments(systematic_sample(chances, generator), (1 / chances).float())
