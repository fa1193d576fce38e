"""Placements on the GPUs that Ray's nodes declare: Ray counts them as if they were there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from tppo_rl.algorithms import TPPOConfig, learner_nodes
from tppo_rl.algorithms.found_gpus import found_gpus, placed
from tppo_rl.algorithms.learner_nodes import learner_bundles, reserve, room_for_learners
from tppo_rl.algorithms.resources import check_resources
from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.config.checks import check_options
from tppo_rl.core.errors import OptionError

pytestmark = pytest.mark.integration

GPUS = 4
"""Of each of two nodes."""
MODEL = {"policy_model": "tppo_rl/arithmetic-chain", "env": "tppo_rl/ArithmeticChain-v0"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ray.shutdown()
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 8, "num_gpus": GPUS, "include_dashboard": False}
    )
    cluster.add_node(num_cpus=8, num_gpus=GPUS, resources={"accelerator_type:H100": 1})
    ray.init(address=cluster.address, log_to_driver=False)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@ray.remote
class Process:
    """Stands for an engine or a learner."""

    def place(self) -> tuple[str, int]:
        (gpu,) = ray.get_gpu_ids()
        return ray.get_runtime_context().get_node_id(), int(gpu)


def config_of(placement: str, **options: Any) -> TPPOConfig:
    config = TPPOConfig().update_from_dict(MODEL | {"placement": placement, **options})
    config._place()
    return config


def places(count: int, share: float, bundles: Any = None) -> tuple[list[Any], list[tuple[str, int]]]:
    strategy: Any = "DEFAULT" if bundles is None else PlacementGroupSchedulingStrategy(bundles)
    processes = [
        Process.options(num_gpus=share, num_cpus=0, scheduling_strategy=strategy).remote() for _ in range(count)
    ]
    return processes, ray.get([process.place.remote() for process in processes], timeout=120)


def test_gpus_are_those_of_all_nodes_and_the_card_is_known(cluster: Cluster) -> None:
    found = found_gpus(check_options(MODEL | {"placement": "cluster"}, SPEC), join=False)
    assert (found.nodes, found.memory, found.source) == ((GPUS, GPUS), 80e9, "Ray's nodes")


def test_what_is_set_is_what_ray_has(cluster: Cluster) -> None:
    found = placed(MODEL | {"placement": "cluster"}, SPEC, join=False)
    assert found is not None
    assert (found.values["num_env_runners"], found.values["num_learners"]) == (4, 4)
    check_resources(config_of("cluster"))
    for placement in ("colocated", "disaggregated"):
        with pytest.raises(OptionError, match=f"{placement}.* is for one machine, and there are 8 GPUs on 2 nodes"):
            config_of(placement)


def test_learners_of_a_cluster_stand_on_one_node_and_engines_on_the_other(cluster: Cluster) -> None:
    config = config_of("cluster")
    with room_for_learners(config) as bundles:
        assert bundles is not None
        assert learner_bundles(config) is bundles
        # Engines start first, as they do in a run.
        engines, of_engines = places(config.num_env_runners, config.num_gpus_per_env_runner)
        learners, of_learners = places(config.num_learners, config.num_gpus_per_learner, bundles)
    assert learner_nodes._reserved.get() is None
    nodes = [{node for node, _ in found} for found in (of_engines, of_learners)]
    assert [len(found) for found in nodes] == [1, 1]
    assert nodes[0] != nodes[1]
    for process in (*engines, *learners):
        ray.kill(process)
    remove_placement_group(bundles)


def test_learners_that_fit_no_node_are_on_several(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    bundles = reserve(config_of("cluster", num_learners=6))
    assert "num_learners=6: no node has room for all of them" in caplog.text
    table = placement_group_table(bundles)
    assert len(set(table["bundles_to_node_id"].values())) == 2
    remove_placement_group(bundles)


def test_a_run_that_fails_gives_the_room_back(cluster: Cluster) -> None:
    taken: list[Any] = []

    def fails() -> None:
        with room_for_learners(config_of("cluster")) as bundles:
            taken.append(bundles)
            raise RuntimeError("engine")

    with pytest.raises(RuntimeError, match="engine"):
        fails()
    assert placement_group_table(taken[0])["state"] == "REMOVED"


def test_room_that_does_not_come_is_an_error(cluster: Cluster) -> None:
    engines, _ = places(6, 1)
    with pytest.raises(OptionError, match=r"num_learners=4: Ray's nodes had no room for them, .* for 2 s"):
        reserve(config_of("cluster", start_timeout_s=2.0))
    for process in engines:
        ray.kill(process)


@pytest.mark.parametrize("placement", ["colocated", "disaggregated", None])
def test_other_placements_take_room_where_it_is_when_learners_start(cluster: Cluster, placement: str | None) -> None:
    config = TPPOConfig().update_from_dict({"placement": placement, "start_timeout_s": 20.0})
    with room_for_learners(config) as bundles:
        assert bundles is None
    assert learner_nodes.learner_bundles(config) is None
    # Engines leave one GPU on one node and two on the other.
    engines, _ = places(2 * GPUS - 3, 1)
    config.learners(num_learners=3, num_gpus_per_learner=1)
    bundles = learner_nodes.learner_bundles(config)
    assert bundles is not None
    assert placement_group_table(bundles)["state"] == "CREATED"
    remove_placement_group(bundles)
    for process in engines:
        ray.kill(process)


def test_room_that_is_waited_for_when_ctrl_c_comes_is_given_back(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []

    def interrupted(bundles: Any, timeout_s: float) -> bool:
        taken.append(bundles)
        raise KeyboardInterrupt

    monkeypatch.setattr(PlacementGroup, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        reserve(config_of("cluster"))
    assert placement_group_table(taken[0])["state"] == "REMOVED"
