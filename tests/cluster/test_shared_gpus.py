"""How Ray fills the GPUs of one machine with the shares of a colocated run; it counts declared GPUs as if they were there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray

from tppo_rl.core.gpus import parse_gpus
from tppo_rl.plan.placement import place

pytestmark = pytest.mark.integration

GPUS = 4


@pytest.fixture(scope="module", autouse=True)
def ray_with_gpus() -> Iterator[None]:
    ray.shutdown()
    ray.init("local", num_cpus=8, num_gpus=GPUS, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@ray.remote
class Process:
    """Stands for an engine or a learner."""

    def gpus(self) -> list[int]:
        return [int(gpu) for gpu in ray.get_gpu_ids()]


def gpus_of(processes: list[Any]) -> list[list[int]]:
    return list(ray.get([process.gpus.remote() for process in processes], timeout=120))


def start(count: int, share: float) -> list[Any]:
    return [Process.options(num_gpus=share, num_cpus=0).remote() for _ in range(count)]


def test_every_gpu_has_one_engine_and_one_learner_also_after_a_restart() -> None:
    given = {"placement": "colocated", "policy_model": "tppo_rl/arithmetic-chain"}
    options = place(given, {}, parse_gpus(f"{GPUS} x h100")).options
    engine, learner = options.rollout.num_gpus_per_env_runner, options.learners.num_gpus_per_learner
    everywhere = [[index] for index in range(GPUS)]
    engines = start(options.rollout.num_env_runners, engine)
    assert sorted(gpus_of(engines)) == everywhere
    learners = start(options.learners.num_learners, learner)
    assert sorted(gpus_of(learners)) == everywhere
    (lost,) = gpus_of(engines[1:2])
    ray.kill(engines[1])
    assert gpus_of(start(1, engine)) == [lost]
