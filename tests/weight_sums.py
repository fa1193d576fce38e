"""SHA-256 of the weights after 8 updates of small synchronous runs: what a change of structure must leave as it is.

    python tests/weight_sums.py            # every case, each in a process of its own
    python tests/weight_sums.py TPPO PPO   # some

Prints one JSON object, {case: {"policy": sum, "critic": sum}}. Sums are compared on one machine alone: another processor
adds up in another order.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from typing import Any

UPDATES = 8
_COMMON: dict[str, Any] = {
    "env": "tppo_rl/ArithmeticChain-v0",
    "env_config": {"max_operands": 6},
    "policy_model": "tppo_rl/arithmetic-chain",
    "num_env_runners": 0,
    "num_envs_per_env_runner": 8,
    "num_learners": 0,
    "max_prompt_length": 48,
    "max_response_length": 64,
    "lr": 1e-3,
    "minibatch_size": 64,
    "seed": 0,
}
_CRITIC = {"critic_lr": 1e-3}
_WINDOWS = _CRITIC | {"mode": "sync", "window_length": 16}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "TPPO": ("TPPO", _WINDOWS),
    "TPPO_all": (
        "TPPO",
        _WINDOWS
        | {
            "hindsight": True,
            "context_gradient": False,
            "context_cache_tokens": 4096,
            "critic_warmup_updates": 2,
            "critic_layers": 2,
            "num_epochs": 2,
            "value_batch_tokens": 64,
            "boundary_value": "tail_corrected",
            "entropy_coef": 0.01,
            "dual_clip": 3.0,
            "policy_token_fraction": 0.5,
        },
    ),
    "TPPO_kl": (
        "TPPO",
        _WINDOWS
        | {
            "kl_coef": 0.02,
            "kl_in": "reward",
            "value_clip": 0.2,
            "off_policy_correction": "decoupled",
            "boundary_value": "bootstrap",
            "critic_targets": "lambda_returns",
            "critic_lambda": 0.9,
            "sequence_mask": [0.5, 2.0],
        },
    ),
    "TPPO_lora": ("TPPO", _WINDOWS | {"lora": {"rank": 4}, "kl_coef": 0.02, "lr": 1e-2, "critic_layers": 2}),
    "PPO": ("PPO", _CRITIC),
    "VAPO": ("VAPO", _CRITIC | {"group_size": 4, "critic_warmup_updates": 2}),
    "GRPO": ("GRPO", {"group_size": 4}),
    "DAPO": ("DAPO", {"group_size": 4}),
}


def run(case: str) -> dict[str, str]:
    """Trains a case in this process and returns the sums of its models' weights."""
    import torch

    # The faster library of linear layers is found by a timing, which may go either way.
    torch.backends.mkldnn.is_available = lambda: False  # type: ignore[assignment]
    from tppo_rl import algorithms

    name, options = CASES[case]
    config = getattr(algorithms, f"{name}Config")().update_from_dict(_COMMON | options)
    algorithm = config.build_algo()
    try:
        for _ in range(UPDATES):
            algorithm.train()
        (sums,) = (result.get() for result in algorithm.learner_group.foreach_learner(_sums))
    finally:
        algorithm.stop()
    return dict(sums)


def _sums(learner: Any) -> dict[str, str]:
    module = learner.module["default_policy"]
    models = {"policy": module.policy, "critic": module.critic}
    return {name: weight_sum(model) for name, model in models.items() if model is not None}


def weight_sum(model: Any) -> str:
    """Returns the SHA-256 of a model's parameters, by name."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def main() -> None:
    cases = sys.argv[1:] or list(CASES)
    if len(cases) == 1:
        print(json.dumps({cases[0]: run(cases[0])}))
        return
    found: dict[str, dict[str, str]] = {}
    for case in cases:
        line = subprocess.run([sys.executable, __file__, case], check=True, stdout=subprocess.PIPE, text=True).stdout
        found |= json.loads(line.splitlines()[-1])
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
