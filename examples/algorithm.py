"""An algorithm of your own: Dr. GRPO (arXiv 2503.20783), GRPO without division by standard deviation or length.

tppo-rl train file examples/algorithm.yaml
"""

from tppo_rl.core.algorithm_spec import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="DrGRPO",
    title="GRPO done right",
    paper="arXiv 2503.20783",
    batches="whole_responses",
    advantages="group_relative",
    critic=None,
    defaults={"group_size": 8, "group_scale": False, "loss_aggregation": "token", "clip_high": 0.2},
    fixed={"group_scale": "the division is what it leaves out; for GRPO use run: GRPO"},
)
