"""Which fragments of a batch the policy trains, and what each counts for.

With `policy_token_fraction` below 1 fragments are drawn by a bound on their gradient (`tppo_rl.maths.subsampling`). Each
learner draws from its own share of the batch; what it weighs by does not depend on the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.maths.subsampling import gradient_bounds, inclusion_probabilities, systematic_sample


@dataclass(frozen=True, eq=False)
class SubsampledFragments:
    """What each pass over a batch of B fragments trains."""

    passes: list[torch.Tensor]
    """int64 [N], rising: the fragments of each pass. Passes are drawn one by one, so that together they see more."""
    weights: torch.Tensor
    """float32 [B]: one over the probability of each fragment; of those that were not drawn, too."""

    @property
    def rows(self) -> torch.Tensor:
        """int64 [N], rising: the fragments of any pass."""
        return torch.cat(self.passes).unique()


def subsampled_fragments(
    batch: TrainBatch,
    advantages: torch.Tensor,
    mean_weights: torch.Tensor,
    share: float,
    num_passes: int,
    generator: np.random.Generator,
) -> SubsampledFragments:
    """Draws about a share of the window tokens of a batch for each pass; 1 draws all of it and takes no random number.

    Args:
        batch: May be empty.
        advantages: float32 [B, T], of the window's tokens.
        mean_weights: float32 [B], of each fragment's tokens in the mean of the loss.
        share: Of the tokens, in (0, 1].
        num_passes: At least 1.
        generator: Draws the fragments.
    """
    if share == 1:
        return SubsampledFragments([torch.arange(len(batch))] * num_passes, torch.ones(len(batch)))
    bounds = mean_weights * gradient_bounds(advantages, batch.behavior_log_probs, batch.window.mask)
    probabilities = inclusion_probabilities(bounds, batch.window.lengths, share)
    passes = [systematic_sample(probabilities, generator) for _ in range(num_passes)]
    return SubsampledFragments(passes, (1 / probabilities).float())
