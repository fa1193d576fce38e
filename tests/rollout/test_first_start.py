"""How long a group of actors is waited for that start: small ones here; `tests/algorithms` has those of a run."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import ray
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from tppo_rl.core.errors import ProcessDied, RunError
from tppo_rl.rollout import first_start
from tppo_rl.rollout.first_start import wait_for_start
from tppo_rl.rollout.heartbeats import Heartbeat
from tppo_rl.rollout.rllib_internals import own_heartbeat_key

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", autouse=True)
def ray_here() -> Iterator[None]:
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


class Starting:
    def __init__(self, start: Callable[[], None]) -> None:
        Heartbeat(own_heartbeat_key()).beat()
        start()

    def apply(self, function: Callable[[Any], Any]) -> Any:
        return function(self)

    def assert_healthy(self) -> None: ...


class Group:
    """The part of RLlib's EnvRunnerGroup that is asked for."""

    def __init__(self, *starts: Callable[[], None]) -> None:
        actor_class = ray.remote(num_cpus=1, max_restarts=100)(Starting)
        self._worker_manager = FaultTolerantActorManager([actor_class.remote(start) for start in starts], init_id=1)

    def num_remote_env_runners(self) -> int:
        return int(self._worker_manager.num_actors())


def starts() -> None: ...


def hangs() -> None:
    time.sleep(1000)


def dies() -> None:
    # The driver looks once a second.
    time.sleep(1.5)
    os._exit(1)


def raises() -> None:
    raise ValueError("no such world")


def given_back() -> bool:
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(ray.available_resources().get("CPU", 0) == 2)


def test_a_group_that_starts_is_there() -> None:
    group = Group(starts, starts)
    wait_for_start(group, 60.0)
    assert group._worker_manager.healthy_actor_ids() == [1, 2]
    group._worker_manager.clear()
    assert given_back()


@pytest.mark.slow
def test_those_that_hang_and_those_without_room_are_named_and_all_are_killed() -> None:
    group = Group(starts, hangs, hangs)
    with pytest.raises(RunError) as caught:
        wait_for_start(group, 20.0)
    told = str(caught.value)
    assert told.startswith("not started after 20 s (start_timeout_s): env-runner 2: the process runs, and its engine")
    assert "; env-runner 3: no process has given a sign; Ray may have no room for one (free are {})" in told
    assert given_back()


@pytest.mark.slow
def test_one_that_dies_in_every_start_ends_the_wait() -> None:
    with pytest.raises(
        ProcessDied, match=r"^the process of env-runner 2 died 4 times while it started, often for want"
    ):
        wait_for_start(Group(starts, dies), 100.0)
    assert given_back()


def test_what_is_raised_in_a_start_is_raised() -> None:
    with pytest.raises(ValueError, match=r"^no such world$"):
        wait_for_start(Group(starts, raises), 60.0)
    assert given_back()


def test_one_that_cannot_be_reached_for_a_while_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    group, failed = Group(starts), []
    get = ray.get

    def get_once_later(call: Any) -> Any:
        if not failed:
            failed.append(call)
            raise ray.exceptions.ActorUnavailableError("for a while", None)
        return get(call)

    monkeypatch.setattr(first_start.ray, "get", get_once_later)
    wait_for_start(group, 60.0)
    assert failed
    group._worker_manager.clear()


def test_one_that_is_killed_is_one_message() -> None:
    group = Group(starts)
    ray.kill(group._worker_manager.actors()[1])
    with pytest.raises(ProcessDied, match=r"^env-runner 1 died while it started, and Ray does not start it again: "):
        wait_for_start(group, 60.0)
