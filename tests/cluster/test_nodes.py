"""A run over three nodes on one machine: the driver's, one that samples, one that learns. Nodes are lost and come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.learner.learner_group import LearnerDied

pytestmark = pytest.mark.slow


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def add_node(cluster: Cluster, task: str) -> Any:
    node = cluster.add_node(num_cpus=1, resources={task: 1})
    cluster.wait_for_nodes()
    return node


def config_of(folder: Path) -> TPPOConfig:
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
            custom_resources_per_env_runner={"sampling": 1},
        )
        .learners(num_learners=1, custom_resources_per_learner={"learning": 1})
        .training(lr=1e-4, critic_lr=5e-4, train_batch_size_per_learner=400)
        .evaluation(evaluation_interval=None)
        .update_from_dict({"results_folder": str(folder)})
    )


@pytest.mark.timeout(900)
def test_nodes_that_are_lost(cluster: Cluster, tmp_path: Path) -> None:
    sampling, learning = add_node(cluster, "sampling"), add_node(cluster, "learning")
    algorithm: Any = config_of(tmp_path / "run").build_algo()
    try:
        algorithm.train()
        before = algorithm.train()
        cluster.remove_node(sampling)
        add_node(cluster, "sampling")
        # The queue lasts for some updates; then only the new node can have sampled what is trained.
        results = [algorithm.train() for _ in range(8)]
        assert results[-1]["tokens"]["trained"] >= before["tokens"]["sampled"] + 400
        assert results[-1]["fault_tolerance"]["num_remote_worker_restarts"] >= 1
        checkpoint = str(tmp_path / "checkpoint")
        algorithm.save_to_path(checkpoint)
        cluster.remove_node(learning)
        with pytest.raises(LearnerDied, match=r"^learner 0 of 1 died .* its node was lost"):
            deque((algorithm.train() for _ in range(3)), maxlen=0)
    finally:
        algorithm.stop()
    add_node(cluster, "learning")
    resumed: Any = config_of(tmp_path / "resumed").build_algo()
    try:
        resumed.restore_from_path(checkpoint)
        assert resumed.train()["training_iteration"] == results[-1]["training_iteration"] + 1
    finally:
        resumed.stop()
