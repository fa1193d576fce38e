"""Searchers by name, where their packages are installed."""

from __future__ import annotations

from typing import Any

import pytest
from ray.tune.search import BasicVariantGenerator

from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.tune.spaces import make_scheduler, make_searcher, param_space


def make_sweep(config: dict[str, Any] | None = None, **tune_config: Any) -> Experiment:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 9},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", "lr": {"loguniform": [1e-5, 1e-3]}} | (config or {}),
        "tune_config": tune_config,
    }
    return make_experiment("a", body)


def test_the_most_trials_at_a_time_are_the_random_searchers_own() -> None:
    searcher = make_searcher(make_sweep(max_concurrent_trials=2))
    assert isinstance(searcher, BasicVariantGenerator)
    assert searcher.max_concurrent == 2


def test_what_the_class_refuses_names_the_argument() -> None:
    with pytest.raises(
        OptionError, match=r"a\.tune_config\.scheduler=.*'grace_period': 20.*grace_period must be <= max_t"
    ):
        make_scheduler(make_sweep(scheduler={"type": "asha", "grace_period": 20}))
    arguments = {"type": "pbt", "quantile_fraction": 0.9, "hyperparam_mutations": {"lr": [1e-4, 1e-3]}}
    with pytest.raises(OptionError, match=r"pbt refuses it: .*quantile_fraction"):
        make_scheduler(make_sweep(scheduler=arguments, num_samples=2))


@pytest.mark.parametrize(("name", "seed"), [("optuna", "seed"), ("hyperopt", "random_state_seed")])
def test_a_searcher_draws_from_the_ranges(name: str, seed: str) -> None:
    pytest.importorskip(name)
    experiment = make_sweep({"window_length": {"choice": [8, 16]}}, search_alg={"type": name, seed: 3}, num_samples=5)
    searcher = make_searcher(experiment)
    assert searcher.set_search_properties("rollout/return_mean", "max", param_space(experiment.options()))
    drawn = [searcher.suggest(str(index)) for index in range(5)]
    assert all(1e-5 <= values["lr"] <= 1e-3 and values["window_length"] in (8, 16) for values in drawn)
    assert len({values["lr"] for values in drawn}) == 5
    with pytest.raises(OptionError, match=rf"search_alg='{name}': .*window_length\.grid_search leaves it no choice"):
        make_sweep({"window_length": {"grid_search": [8, 16]}}, search_alg=name)
