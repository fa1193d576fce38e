"""Population based training: what may be perturbed is, in the learner too, and it survives a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.rllib.core import DEFAULT_MODULE_ID

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.config.run_files import make_experiment
from tppo_rl.experiment.result_log import read_results
from tppo_rl.tune.spaces import make_scheduler, within_bounds

pytestmark = pytest.mark.integration

OPTIONS: dict[str, Any] = {
    "policy_model": "tppo_rl/arithmetic-chain",
    "num_envs_per_env_runner": 8,
    "window_length": 16,
    "max_response_length": 64,
    "train_batch_size_per_learner": 100,
    "rollout_log_fragments": 0,
    "record_episodes": 0,
}
LRS = (1e-5, 1e-3)
SWEEP: dict[str, Any] = {
    "run": "TPPO",
    "env": "tppo_rl/ArithmeticChain-v0",
    "stop": {"training_iteration": 6},
    # Every response fits into one window of 64, few into one of 2: the first trial is the worse one for certain.
    "config": OPTIONS | {"lr": 1e-4, "critic_lr": 3e-4, "window_length": {"grid_search": [2, 64]}},
    "tune_config": {
        "metric": "policy/unfinished_fraction",
        "mode": "min",
        "scheduler": {
            "type": "pbt",
            "time_attr": "training_iteration",
            "perturbation_interval": 2,
            "quantile_fraction": 0.5,
            "resample_probability": 0.5,
            "hyperparam_mutations": {"lr": {"loguniform": list(LRS)}, "critic_lr": [1e-4, 3e-4, 1e-3]},
        },
    },
}


@pytest.fixture(autouse=True)
def _no_ray_is_left() -> Iterator[None]:
    yield
    ray.shutdown()


def learning_rates(result: dict[str, Any]) -> tuple[float, float]:
    learner = result["learners"][DEFAULT_MODULE_ID]
    return learner["learning_rate"], learner["critic_learning_rate"]


def test_a_restored_trial_trains_with_its_new_options(tmp_path: Path) -> None:
    """As Tune does it: a new process with the new config restores another's checkpoint."""
    rates = []
    for lr, critic_lr in ((1e-4, 5e-4), (3e-4, 1e-3)):
        config = TPPOConfig().environment("tppo_rl/ArithmeticChain-v0").update_from_dict(OPTIONS)
        config.update_from_dict({"lr": lr, "critic_lr": critic_lr, "mode": "sync", "num_env_runners": 0})
        config.results_folder = str(tmp_path / str(lr))
        algorithm = TPPO(config=config)
        try:
            if rates:
                algorithm.restore(str(tmp_path / "checkpoint"))
            rates.append(learning_rates(algorithm.train()))
            algorithm.save(str(tmp_path / "checkpoint"))
            assert algorithm.training_iteration == len(rates)
        finally:
            algorithm.stop()
    assert rates == [(1e-4, 5e-4), (3e-4, 1e-3)]


def test_perturbed_values_stay_in_the_ranges_that_were_checked() -> None:
    bounds = {"lr": LRS, "critic_lr": None}
    assert within_bounds(bounds, {"lr": 2e-3, "critic_lr": 9.0}) == {"lr": 1e-3, "critic_lr": 9.0}
    assert within_bounds(bounds, {"lr": 1e-6, "critic_lr": 9.0}) == {"lr": 1e-5, "critic_lr": 9.0}
    scheduler = make_scheduler(make_experiment("pop", SWEEP))
    for _ in range(100):
        values = scheduler._custom_explore_fn({"lr": 1e-3 * 1.2, "critic_lr": 3e-4})
        assert LRS[0] <= values["lr"] <= LRS[1]


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tppo_rl", "tune", "file", "sweep.yaml", *arguments]
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pbt_perturbs_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump({"pop": SWEEP}), encoding="utf-8")
    sweep = tmp_path / "runs" / "pop"
    process = start(tmp_path)
    while process.poll() is None and not (sweep / "pbt_global.txt").is_file():
        time.sleep(0.2)
    time.sleep(2.0)
    assert process.poll() is None, process.communicate()[0]
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    before = (sweep / "pbt_global.txt").read_text().splitlines()
    assert before

    process = start(tmp_path, "--resume")
    output = process.communicate(timeout=400)[0]
    assert process.returncode == 0, output
    perturbed = [json.loads(line) for line in (sweep / "pbt_global.txt").read_text().splitlines()]
    old, new = perturbed[0][-2:]
    assert old["lr"] == 1e-4 != new["lr"]
    assert old["window_length"] == new["window_length"] == 64
    trials = [path for path in sweep.iterdir() if (path / "result.json").is_file()]
    assert len(trials) == 2
    seen = set()
    for trial in trials:
        results = read_results(trial)
        assert results[-1]["training_iteration"] == 6
        assert (trial / "summary.json").is_file()
        for result in results:
            rates = result["config"]["lr"], result["config"]["critic_lr"]
            assert LRS[0] <= rates[0] <= LRS[1]
            assert learning_rates(result) == rates
            seen.add(rates[0])
    assert {1e-4, new["lr"]} <= seen
