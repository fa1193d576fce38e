"""Options of an engine that answers prompts and trains nothing."""

from __future__ import annotations

import pytest

from tppo_rl.config.checks import check_rules
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import ALGORITHMS
from tppo_rl.experiment.sources import options_of_source


def test_responses_may_be_shorter_than_a_window() -> None:
    options, checkpoint = options_of_source("tppo_rl/arithmetic-chain", {"hindsight": True}, ["max_response_length=40"])
    assert checkpoint is None
    assert options.rollout.max_response_length == options.rollout.window == 40
    check_rules(options, ALGORITHMS.find("TPPO"))


def test_a_model_that_is_not_there_is_refused() -> None:
    with pytest.raises(OptionError, match=r"policy_model=.\./nowhere."):
        options_of_source("./nowhere", {}, [])


def test_a_run_with_sharded_learners_on_gpus_is_evaluated_without_them() -> None:
    given = {"distributed": "fsdp", "num_learners": 2, "placement": "disaggregated", "gpus": "8 x h100"}
    options, _ = options_of_source("tppo_rl/arithmetic-chain", given, [])
    check_rules(options, ALGORITHMS.find("TPPO"))
