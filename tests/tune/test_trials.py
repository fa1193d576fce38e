"""A grid of a run file as Tune trials on real Ray."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray import tune

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.ray_start import quiet_libraries
from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.config.run_files import Experiment, make_experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.result_log import read_results
from tppo_rl.tune.trials import run_trials

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module", autouse=True)
def two_logical_cpus() -> Iterator[None]:
    quiet_libraries()
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def make_grid() -> Experiment:
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 2},
        "checkpoint_config": {"checkpoint_frequency": 1},
        "config": {
            "policy_model": "tppo_rl/arithmetic-chain",
            "num_envs_per_env_runner": 8,
            "window_length": {"grid_search": [8, 16]},
            "max_response_length": 64,
            "train_batch_size_per_learner": 100,
            "evaluation_interval": 2,
            "evaluation_duration": 8,
        },
    }
    return make_experiment("grid", body)


@pytest.mark.slow
def test_trials_queue_on_two_cpus_and_each_leaves_a_summary(tmp_path: Path) -> None:
    grid = run_trials(make_grid(), tmp_path)
    assert grid.num_errors == 0
    assert sorted(result.config["window_length"] for result in grid) == [8, 16]
    for result in grid:
        folder = Path(result.path)
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        assert summary["heldout_n"] == 8
        assert summary["updates"] == 2
        assert (folder / "progress.csv").is_file()
        assert (folder / "result.json").is_file()
        assert list((folder / "tensorboard").iterdir())
        assert list((folder / "rollouts").glob("*.parquet"))
        assert result.checkpoint is not None
    with pytest.raises(OptionError, match="holds an earlier sweep"):
        run_trials(make_grid(), tmp_path)


FAILS_ONCE = """
    from pathlib import Path
    from ray.rllib.callbacks.callbacks import RLlibCallback

    class FailsOnce(RLlibCallback):
        def on_train_result(self, *, algorithm, metrics_logger, result, **kwargs):
            mark = Path(__file__).with_name("has_failed")
            if result["training_iteration"] == 2 and not mark.is_file():
                mark.touch()
                raise RuntimeError("once")
"""


@pytest.mark.slow
@pytest.mark.parametrize("max_failures", [0, 1])
def test_a_trial_that_fails_goes_on_as_often_as_it_may(tmp_path: Path, max_failures: int) -> None:
    (tmp_path / "once.py").write_text(textwrap.dedent(FAILS_ONCE), encoding="utf-8")
    grid = make_grid()
    config = grid.config | {"window_length": {"grid_search": [8]}, "callbacks_class": f"{tmp_path}/once.py:FailsOnce"}
    changes = {"config": config, "max_failures": max_failures, "stop": {"training_iteration": 3}}
    results = run_trials(grid.model_copy(update=changes), tmp_path / "results")
    assert results.num_errors == 1 - max_failures
    if max_failures:
        iterations = [row["training_iteration"] for row in read_results(Path(results[0].path))]
        assert iterations == [1, 2, 3]


def test_a_sweep_that_does_not_exist_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no sweep"):
        run_trials(make_grid(), tmp_path / "nothing", resume=True)


@pytest.mark.slow
def test_a_tuner_takes_the_algorithm_and_its_config_as_rllib_users_give_them(tmp_path: Path) -> None:
    config = (
        TPPOConfig()
        .environment("tppo_rl/ArithmeticChain-v0")
        .language_model("tppo_rl/arithmetic-chain")
        .env_runners(num_envs_per_env_runner=8, window_length=tune.grid_search([12]), max_response_length=64)
        .training(train_batch_size_per_learner=100, lr=tune.loguniform(1e-5, 1e-4), lambda_=0.9)
    )
    run_config = tune.RunConfig(storage_path=str(tmp_path), stop={"training_iteration": 1}, verbose=0)
    grid = tune.Tuner(TPPO, param_space=config, run_config=run_config).fit()
    assert grid.num_errors == 0
    (result,) = grid
    assert result.config["window_length"] == 12
    assert 1e-5 <= result.config["lr"] <= 1e-4
    assert result.metrics is not None
    assert result.metrics["config"]["lambda"] == 0.9
    assert result.metrics["tokens"]["trained"] >= 100
