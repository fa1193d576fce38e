"""The window sweep: one definition in YAML, one with RLlib's builder, the same trials."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

import pytest
from ray import tune
from ray.tune import Experiment as TuneExperiment
from ray.tune.search import BasicVariantGenerator

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.config.run_files import Experiment, load_run_file, make_experiment
from tppo_rl.tune.spaces import make_searcher, param_space
from tppo_rl.tune.window_sweep import CAP, PARTS, SEEDS, TOKENS, window_config


def trials_of(space: Mapping[str, Any], searcher: BasicVariantGenerator, num_samples: int = 1) -> list[dict[str, Any]]:
    """The options of every trial that Tune would make, in its order."""
    searcher.add_configurations(TuneExperiment("sweep", TPPO, config=dict(space), num_samples=num_samples))
    trials = []
    while (trial := searcher.next_trial()) is not None:
        trials.append(TPPOConfig().update_from_dict(trial.config).options.flat())
    return trials


def trials_in_yaml(experiment: Experiment) -> list[dict[str, Any]]:
    return trials_of(param_space(experiment.options()), make_searcher(experiment), experiment.samples)


@pytest.fixture(scope="module")
def shipped() -> Experiment:
    with resources.as_file(resources.files("tppo_rl.configs") / "window_sweep.yaml") as path:
        (experiment,) = load_run_file(path)
    return experiment


def test_the_window_sweep_is_the_same_in_yaml_and_in_python(shipped: Experiment) -> None:
    in_yaml = trials_in_yaml(shipped)
    in_python = trials_of(window_config().to_dict(), BasicVariantGenerator())
    assert len(in_yaml) == len(PARTS) * len(SEEDS)
    assert {(trial["window_length"], trial["seed"]) for trial in in_yaml} == {
        (CAP // part, seed) for part in PARTS for seed in SEEDS
    }
    assert in_yaml == in_python
    assert shipped.stop == {"num_env_steps_sampled_lifetime": TOKENS}


def test_random_values_are_the_same_in_yaml_and_in_python() -> None:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": {
            "policy_model": "tppo_rl/arithmetic-chain",
            "lr": {"loguniform": [1e-5, 1e-3]},
            "clip_low": {"quniform": [0.1, 0.3, 0.1]},
            "num_epochs": {"randint": [1, 4]},
            "window_length": {"choice": [8, 16, 32]},
            "boundary_value": {"grid_search": ["hold", "bootstrap"]},
        },
        "tune_config": {"num_samples": 3, "search_alg": {"type": "random", "random_state": 5}},
    }
    config = (
        TPPOConfig()
        .environment("tppo_rl/ArithmeticChain-v0")
        .language_model("tppo_rl/arithmetic-chain")
        .env_runners(window_length=tune.choice([8, 16, 32]))
        .training(
            lr=tune.loguniform(1e-5, 1e-3),
            clip_low=tune.quniform(0.1, 0.3, 0.1),
            num_epochs=tune.randint(1, 4),
            boundary_value=tune.grid_search(["hold", "bootstrap"]),
        )
    )
    in_yaml = trials_in_yaml(make_experiment("a", body))
    in_python = trials_of(config.to_dict(), BasicVariantGenerator(random_state=5), num_samples=3)
    assert len({trial["lr"] for trial in in_yaml}) == 6

    def plain(trials: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
        return sorted(sorted((key, repr(value)) for key, value in trial.items()) for trial in trials)

    assert plain(in_yaml) == plain(in_python)


def test_seeds_repeat_a_drawn_trial() -> None:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", "lr": {"loguniform": [1e-5, 1e-3]}},
        "num_samples": 2,
        "seeds": [3, 4],
    }
    trials = trials_in_yaml(make_experiment("a", body))
    assert sorted(trial["seed"] for trial in trials) == [3, 3, 4, 4]
    by_seed = {seed: [trial["lr"] for trial in trials if trial["seed"] == seed] for seed in (3, 4)}
    assert by_seed[3] == by_seed[4]
    assert len(set(by_seed[3])) == 2
