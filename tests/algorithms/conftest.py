from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.ray_start import quiet_libraries


@pytest.fixture(scope="module", autouse=True)
def ray_on_this_machine() -> Iterator[None]:
    quiet_libraries()
    # Logical CPUs: trials and learners share the two real ones.
    ray.init("local", num_cpus=8, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture
def small_config(tmp_path: Any) -> TPPOConfig:
    """T-PPO on the shipped model, small enough for a few seconds an iteration."""
    return (
        TPPOConfig()
        .environment("tppo_rl/ArithmeticChain-v0")
        .language_model("tppo_rl/arithmetic-chain")
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=16,
            window_length=12,
            max_response_length=96,
            max_prompt_length=120,
        )
        .training(
            lr=1e-4,
            critic_lr=5e-4,
            train_batch_size_per_learner=400,
            critic_warmup_updates=1,
        )
        .evaluation(evaluation_interval=100, evaluation_duration=40)
        .debugging(seed=0)
        .update_from_dict({"results_folder": str(tmp_path / "run")})
    )
