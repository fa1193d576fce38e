"""What each algorithm is, in options: the values that it was published with, and those that make it what it is.

| algorithm | responses | advantages | critic | source |
|---|---|---|---|---|
| TPPO | windows | EGAE | Monte-Carlo returns of finished episodes | arXiv 2506.15050 |
| PPO | whole | GAE | the same | arXiv 1707.06347 |
| VAPO | whole, in groups | GAE, length-adaptive lambda | the same, warmed up | arXiv 2504.05118 |
| GRPO | whole, in groups | group-relative | none | arXiv 2402.03300 |
| DAPO | whole, in groups, without those of no variance | group-relative | none | arXiv 2503.14476 |

PPO has T-PPO's defaults in all else, so that a comparison shows what windows do. Published values that belong to a size
of model or batch (learning rates, steps of warm-up, group size) are defaults to change; the fixed ones are not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """The options of one algorithm that differ from those of `Options`."""

    title: str
    options: Mapping[str, Any]
    fixed: Mapping[str, str]
    """Keys of `options` that may not be changed, each with the reason."""


_WHOLE = {"mode": "sync", "window_length": None}
_WHOLE_REASONS = {
    "mode": "it waits for whole responses before it updates; for windows or async sampling use run: TPPO",
    "window_length": "it trains whole responses; for windows use run: TPPO",
}
_GROUPS = _WHOLE | {"critic": None, "advantage_estimator": "group_relative"}
_GROUPS_REASONS = _WHOLE_REASONS | {
    "critic": "it has none; for one use run: VAPO",
    "advantage_estimator": "it compares the responses to one prompt; for GAE use run: PPO",
}

PRESETS: dict[str, Preset] = {
    "TPPO": Preset("Truncated PPO", {}, {}),
    "PPO": Preset(
        "PPO on whole responses",
        _WHOLE | {"advantage_estimator": "gae"},
        _WHOLE_REASONS | {"advantage_estimator": "plain GAE is what it is compared for; for EGAE use run: TPPO"},
    ),
    "VAPO": Preset(
        "value-augmented PPO",
        _WHOLE
        | {
            "advantage_estimator": "gae",
            "lambda_": "length_adaptive",
            "lambda_alpha": 0.05,
            "critic_warmup_updates": 50,
            "positive_lm_coef": 0.1,
            "group_size": 16,
            "lr": 1e-6,
            "critic_lr": 2e-6,
        },
        _WHOLE_REASONS | {"advantage_estimator": "it is PPO with options on; for EGAE use run: TPPO"},
    ),
    "GRPO": Preset(
        "group-relative policy optimisation",
        _GROUPS | {"group_size": 16, "loss_mean": "response", "clip_high": 0.2, "kl_coef": 0.04, "kl_estimator": "k3"},
        _GROUPS_REASONS,
    ),
    "DAPO": Preset(
        "decoupled clip and dynamic sampling policy optimisation",
        _GROUPS
        | {
            "group_size": 16,
            "dynamic_sampling": True,
            "overlong_share": 0.2,
            "rewards": "plus_minus_one",
        },
        _GROUPS_REASONS,
    ),
}
