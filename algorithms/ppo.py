"""PPO on whole responses (arXiv 1707.06347): what T-PPO is compared with.

    batches      every slot generates one whole response, and the step waits for the longest; with partial rollouts, and in async
                 mode, slots are refilled at once, and a response is trained when it has ended
    advantages   A_t = sum_k (gamma lambda)^k delta_(t+k) to the end of the response: plain GAE (`maths/advantages.py`)
    losses       those of T-PPO

Everything else is T-PPO's, so that a comparison shows what windows do. Tune knows RLlib's algorithm by the name "PPO", so this
one is given to it as a class.
"""

from __future__ import annotations

from tppo_rl.algorithms.lazy_classes import lazy_classes
from tppo_rl.core.algorithm_spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="PPO",
    title="PPO on whole responses",
    paper="arXiv 1707.06347",
    batches="whole_responses",
    advantages="gae",
    fixed={"advantage_estimator": "plain GAE is what it is compared for; for EGAE use run: TPPO"},
)

__getattr__ = lazy_classes(SPEC)  # PPO and PPOConfig
