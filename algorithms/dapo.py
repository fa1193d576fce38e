"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, a token mean, no KL, and two parts more.

batches      GRPO's; groups whose responses are all right or all wrong are replaced by others before the update
             (`rollout/groups.py`)
rewards      1 or -1, and a penalty that grows over the last tokens under the response cap (`rollout/rewards.py`)
advantages   GRPO's
policy loss  clipped surrogate with clip_high 0.28, mean over all tokens
"""

from __future__ import annotations

from tppo_rl.algorithms.grpo import GROUP_RELATIVE
from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="DAPO",
    title="decoupled clip and dynamic sampling policy optimization",
    paper="arXiv 2503.14476",
    batches="whole_responses",
    advantages="group_relative",
    critic=None,
    defaults={"group_size": 16, "dynamic_sampling": True, "overlong_fraction": 0.2, "rewards": "plus_minus_one"},
    fixed=GROUP_RELATIVE,
)

__getattr__ = lazy_classes(SPEC)  # DAPO and DAPOConfig
