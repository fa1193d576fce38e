"""A run goes on with the models of its checkpoint, or says which option is another one."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.checkpoint_contents import _shape, check_facts
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError


def config_of(changes: dict[str, Any]) -> Any:
    config = TPPOConfig().environment("tppo_rl/ArithmeticChain-v0").language_model("tppo_rl/arithmetic-chain")
    return config.update_from_dict(changes)


def facts_of(changes: dict[str, Any]) -> tuple[dict[str, Any], Options]:
    """What a checkpoint says of its run, and the run's options."""
    config = config_of(changes)
    options: Options = config.options
    facts = {
        "algorithm": "TPPO",
        "model_shape": _shape(options),
        "options": options.flat(),
        "model_config": config.get_default_rl_module_spec().model_config,
    }
    return json.loads(json.dumps(facts, default=str)), options


SHARED = {"critic": "shared", "critic_lora": {"rank": 4}}


@pytest.mark.parametrize(
    "changes", [{}, SHARED, {"lora": {"rank": 4, "target_modules": ["q_proj"]}}, {"critic_layers": 2}]
)
def test_the_same_models_go_on(changes: dict[str, Any]) -> None:
    facts, options = facts_of(changes)
    check_facts(facts, options, "TPPO", "checkpoint")


@pytest.mark.parametrize(
    ("saved", "now", "words"),
    [
        ({}, SHARED, r"critic='shared': the checkpoint's critic was saved with critic='separate'"),
        (SHARED, {}, r"critic='separate': the checkpoint's critic was saved with critic='shared'"),
        (SHARED, SHARED | {"critic_lora": {"rank": 8}}, r"critic_lora=\{'rank': 8, .*saved with critic_lora=\{'rank': 4"),
        ({"lora": {"rank": 4}}, {"lora": {"rank": 4, "alpha": 2.0}}, r"lora=.*'alpha': 2\.0.*the checkpoint was saved with"),
        ({"lora": {"rank": 4}}, {}, r"lora=None: the checkpoint was saved with lora=\{'rank': 4"),
        ({"critic_layers": 2}, {"critic_layers": 1}, r"critic_layers=1: the checkpoint was saved with critic_layers=2"),
    ],
)  # fmt: skip
def test_another_critic_or_other_adapters_are_named(saved: dict[str, Any], now: dict[str, Any], words: str) -> None:
    facts, _ = facts_of(saved)
    with pytest.raises(OptionError, match=words):
        check_facts(facts, config_of(now).options, "TPPO", "checkpoint")
