"""GSPO (arXiv 2507.18071): GRPO with the ratio of the whole response in place of the token's.

    batches      GRPO's
    advantages   GRPO's
    policy loss  -min(s A, clip(s, 1 - clip_low, 1 + clip_high) A), s = exp(mean over the response of log pi / pi_old);
                 mean over responses (`learner/policy_losses.py`)

The clips are the paper's: s stays far closer to 1 than a token's ratio. In partial rollouts pi_old is, for each token, the policy that
sampled it. A window has no ratio of its response, so windows are refused.
"""

from __future__ import annotations

from tppo_rl.algorithms.grpo import GROUP_RELATIVE
from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="GSPO",
    title="group sequence policy optimization",
    paper="arXiv 2507.18071",
    batches="whole_responses",
    advantages="group_relative",
    policy_loss="gspo",
    critic=None,
    defaults={"group_size": 16, "loss_aggregation": "response", "clip_low": 3e-4, "clip_high": 4e-4},
    fixed={
        **GROUP_RELATIVE,
        "policy_loss": "the ratio of whole responses is what it is; for another loss use run: GRPO",
    },
)

__getattr__ = lazy_classes(SPEC)  # GSPO and GSPOConfig
