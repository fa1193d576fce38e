"""CISPO (MiniMax-M1, arXiv 2506.13585): GRPO with weights that are cut from above, so that no token loses its gradient.

    batches      GRPO's
    advantages   GRPO's
    policy loss  -min(r_t, cap) A_t log pi(a_t), the weight without a gradient; mean over all tokens
                 (`learner/policy_losses.py`)

The paper gives no cap; `policy_loss: {type: cispo, cap: …}` sets another one than 5 (arXiv 2510.13786 uses 4 to 8). No KL, as in
the paper.
"""

from __future__ import annotations

from tppo_rl.algorithms.grpo import GROUP_RELATIVE
from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="CISPO",
    title="clipped importance sampling policy optimization",
    paper="arXiv 2506.13585",
    batches="whole_responses",
    advantages="group_relative",
    policy_loss="cispo",
    critic=None,
    defaults={"group_size": 16},
    fixed=GROUP_RELATIVE,
)

__getattr__ = lazy_classes(SPEC)  # CISPO and CISPOConfig
