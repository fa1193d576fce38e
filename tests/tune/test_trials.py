"""A grid of a run file as Tune trials on real Ray."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from tppo_rl.options import OptionError
from tppo_rl.run import quiet_libraries
from tppo_rl.run_files import Experiment, make_experiment
from tppo_rl.tune.trials import run_trials


@pytest.fixture(scope="module", autouse=True)
def two_logical_cpus() -> Iterator[None]:
    quiet_libraries()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
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


def test_a_sweep_that_does_not_exist_cannot_be_resumed(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no sweep"):
        run_trials(make_grid(), tmp_path / "nothing", resume=True)
