"""An advantage estimator of your own: the return minus the value, where the return is known.

tppo-rl train file examples/advantage.yaml
"""

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.values import CriticValues
from tppo_rl.maths.returns import monte_carlo_returns


def return_minus_value(
    batch: TrainBatch, values: CriticValues | None, options: Options, *, scale: float = 1.0
) -> torch.Tensor:
    """scale * (G_t - V(s_t)) on finished windows, 0 on unfinished ones and in the padding; float32 [B, T]."""
    assert values is not None, "this estimator needs a critic"
    window = batch.window
    returns = monte_carlo_returns(window.rewards, window.lengths, gamma=options.advantages.gamma)
    known = window.mask & batch.finished[:, None]
    return torch.where(known, scale * (returns - values.window), 0.0)
