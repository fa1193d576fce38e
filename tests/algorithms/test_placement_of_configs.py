"""Placements of the builder: what it sets, what stays the user's, and what a real Ray without GPUs says."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.found_gpus import found_gpus
from tppo_rl.algorithms.rllib_classes import rllib_classes
from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.core.errors import OptionError

pytestmark = pytest.mark.integration

SHARES = ("num_env_runners", "num_gpus_per_env_runner", "num_learners", "num_gpus_per_learner")


def base() -> TPPOConfig:
    return TPPOConfig().environment("tppo_rl/ArithmeticChain-v0").language_model("tppo_rl/arithmetic-chain")


def shares(config: TPPOConfig) -> tuple[float, ...]:
    return tuple(getattr(config, key) for key in SHARES)


def test_the_builder_sets_what_the_user_has_left_out() -> None:
    config = base().resources(placement="disaggregated", gpus="8 x h100").learners(num_learners=2)
    config.validate()
    assert shares(config) == (6, 1, 2, 1)
    assert config.dtype == "bfloat16"
    assert config.engine == {"gpu_memory_utilization": 0.9}
    assert config.options.learners.num_learners == 2


def test_a_value_that_is_the_default_counts_as_given() -> None:
    config = base().resources(placement="colocated", gpus="2 x h100").env_runners(num_env_runners=1)
    config.learners(num_learners=2)
    with pytest.raises(OptionError, match="num_env_runners=1: placement='colocated' needs an engine on each GPU"):
        config.validate()
    config.dtype = "float32"
    config.num_learners = 1
    config._place()
    assert (config.num_env_runners, config.dtype) == (1, "float32")


def test_another_placement_takes_the_first_one_back() -> None:
    config = base().resources(placement="colocated", gpus="2 x h100").pipeline(mode="sync")
    config.env_runners(engine={"max_num_seqs": 9})
    config._place()
    assert config.engine == {"enable_sleep_mode": True, "gpu_memory_utilization": 0.9, "max_num_seqs": 9}
    config._place()
    config.placement = "disaggregated"
    config._place()
    assert config.engine == {"gpu_memory_utilization": 0.9, "max_num_seqs": 9}
    assert shares(config) == (1, 1, 1, 1)
    config.placement = None
    config._place()
    assert config.engine == {"max_num_seqs": 9}
    assert shares(config) == (1, 0, 0, 0)
    assert config.dtype == "float32"


def test_a_config_of_a_config_says_what_its_user_gave() -> None:
    """Tune hands configs on as dictionaries that name every option."""
    config = base().resources(placement="colocated", gpus="4 x h100")
    other = TPPOConfig().update_from_dict(config.to_dict())
    other._place()
    assert shares(other) == (4, 0.6, 4, 0.4)
    assert shares(config.copy()) == (1, 0, 0, 0)


def test_what_a_config_notes_is_no_setting_that_a_checkpoint_would_miss() -> None:
    assert not {"_given", "_before_placement"} & base()._settable


def test_a_trial_asks_tune_for_the_shares() -> None:
    algorithm, _ = rllib_classes(SPEC)
    options: dict[str, Any] = {
        "env": "tppo_rl/ArithmeticChain-v0",
        "policy_model": "tppo_rl/arithmetic-chain",
        "placement": "disaggregated",
        "gpus": "4 x h100",
    }
    request = algorithm.default_resource_request(options)
    assert request.required_resources["GPU"] == 4
    assert len([bundle for bundle in request.bundles if bundle.get("GPU")]) == 4


def test_gpus_that_are_stated_and_not_there_end_a_run_before_it_begins() -> None:
    config = base().resources(placement="colocated", gpus="h100")
    with pytest.raises(OptionError, match=r"num_learners=1 x num_gpus_per_learner=0\.4 is 1 GPU in all, and Ray has 0"):
        config.build_algo()


def test_a_ray_without_gpus_is_told_of() -> None:
    config = base().resources(placement="colocated")
    with pytest.raises(
        OptionError, match="placement='colocated': Ray has no GPU on any of its nodes; leave placement out"
    ):
        found_gpus(config.options, join=True)
