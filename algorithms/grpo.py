"""GRPO (arXiv 2402.03300): responses to one prompt are compared with one another; there is no critic.

    batches      whole responses in groups, sync: one of every slot; with partial rollouts, and async: those that have ended
    advantages   A_i = (R_i - mean(R)) / std(R) over the group, the same on every token of response i
                 (`maths/group_advantages.py`)
    policy loss  mean over responses of the mean over tokens of (clipped surrogate + 0.04 * k3(reference, policy))

No critic is built, on learners or elsewhere. The paper samples 64 responses a prompt; `group_size` is 16 here.
"""

from __future__ import annotations

from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

GROUP_RELATIVE = {
    "critic": "it has none; for one use run: VAPO",
    "advantage_estimator": "it compares the responses to one prompt; for GAE use run: PPO",
}
"""Why its relatives cannot have them either."""

SPEC = AlgorithmSpec(
    name="GRPO",
    title="group-relative policy optimization",
    paper="arXiv 2402.03300",
    batches="whole_responses",
    advantages="group_relative",
    critic=None,
    defaults={
        "group_size": 16,
        "loss_aggregation": "response",
        "clip_high": 0.2,
        "kl_coef": 0.04,
        "kl_estimator": "k3",
    },
    fixed=GROUP_RELATIVE,
)

__getattr__ = lazy_classes(SPEC)  # GRPO and GRPOConfig
