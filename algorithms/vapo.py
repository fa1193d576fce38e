"""VAPO (arXiv 2504.05118): PPO with what makes a critic work on long answers.

    batches      GRPO's
    advantages   GAE with lambda = 1 - 1 / (alpha * l) for a response of l tokens (`maths/advantages.py`)
    policy loss  clipped surrogate (clip-higher, token mean) + 0.1 * (-log pi) on right responses (`maths/imitation.py`)
    critic loss  Monte-Carlo returns; the critic is warmed up while the policy is frozen

The number of warm-up updates, the group size and the learning rates are the paper's for 32B parameters: change them to your
model. The responses of a group are told apart by the critic alone, as in the paper.
"""

from __future__ import annotations

from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="VAPO",
    title="value-augmented PPO",
    paper="arXiv 2504.05118",
    batches="whole_responses",
    advantages="gae",
    defaults={
        "lambda_": "length_adaptive",
        "lambda_alpha": 0.05,
        "critic_warmup_updates": 50,
        "positive_lm_coef": 0.1,
        "group_size": 16,
        "lr": 1e-6,
        "critic_lr": 2e-6,
    },
    fixed={"advantage_estimator": "it is PPO with options on; for EGAE use run: TPPO"},
)

__getattr__ = lazy_classes(SPEC)  # VAPO and VAPOConfig
