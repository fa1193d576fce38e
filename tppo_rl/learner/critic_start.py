"""The value that a critic starts at.

A cold critic says 0 everywhere, while the mean return is something else. As its backbone lifts the value, it writes slopes along the
response that the true values do not have, and the advantages of unfinished windows are made of these slopes alone. So the head's bias
starts where a constant critic would end: at the mean return. The first evaluation tells it; without one the first finished responses do,
which are the short ones where responses are cut into windows.
"""

from __future__ import annotations

from typing import Literal

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.models import Critic
from tppo_rl.learner.sharding import load_weights
from tppo_rl.maths.reduce import mean
from tppo_rl.maths.value_forms import SquaredError


def initial_value(critic: Critic, options: Options) -> float | Literal["mean_return"]:
    """Returns what a new critic begins with; by default the mean return, and 0 with squared error."""
    wanted = options.critic.critic_initial_value
    if wanted is not None:
        return wanted
    return 0.0 if isinstance(critic.form, SquaredError) else "mean_return"


def is_cold(critic: Critic, collective: Collective) -> bool:
    """Whether the value head is as it was built. All learners must ask, and get the same answer."""
    parts = [critic.value_head.weight, critic.value_head.bias]
    slices = [part.to_local() if hasattr(part, "to_local") else part for part in parts]
    largest = torch.stack([part.detach().abs().sum().float().cpu() for part in slices]).max()
    return float(collective.max_(largest)) == 0.0


def start_critic(
    critic: Critic, returns: torch.Tensor, initial_value: float | Literal["mean_return"], collective: Collective
) -> bool:
    """Sets the bias of a cold critic's head; all learners must call it, and get the same answer.

    Args:
        critic: Whose head is cold.
        returns: float32 [N], returns of the finished responses' tokens on this learner; may be empty.
        initial_value: The value itself, or "mean_return": the constant that fits the returns of all learners best.
        collective: The other learners.

    Returns:
        False where no learner has returns to start from.
    """
    if initial_value != "mean_return":
        returns = torch.tensor([initial_value] if collective.rank == 0 else [], dtype=torch.float32)
    targets = critic.form.targets(returns)
    total = collective.sum_(torch.cat([targets.double().sum(dim=0), torch.tensor([float(len(returns))]).double()]))
    if not total[-1]:
        return False
    fitting = torch.tensor([mean(float(part), float(total[-1])) for part in total[:-1]])
    load_weights(critic, {"value_head.bias": critic.form.start(fitting).numpy()}, strict=False)
    return True
