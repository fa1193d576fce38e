"""RLlib's group of env-runners from inside: the attributes that we use beside its documented API.

`tppo_rl.core.insides` explains `CONTRACT`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from tppo_rl.core.insides import RAY, Contract

logger = logging.getLogger(__name__)

CONTRACT: Contract = {
    "ray.rllib.env.env_runner_group:EnvRunnerGroup": (
        "fetch_ready_async_reqs",
        "foreach_env_runner",
        "foreach_env_runner_async",
        "healthy_env_runner_ids",
        "local_env_runner",
        "num_healthy_remote_workers",
        "num_in_flight_async_reqs",
        "num_remote_env_runners",
        "sync_weights",
    ),
    "ray.rllib.utils.actor_manager:FaultTolerantActorManager": (
        "_filter_calls_by_tag",
        "actors",
        "clear",
        "fetch_ready_async_reqs",
        "set_actor_state",
    ),
    "ray.experimental.internal_kv": ("_internal_kv_del", "_internal_kv_get", "_internal_kv_put"),
}
"""We also use `_worker_manager` of a group. It exists on instances alone, so the tests of the pipeline check it."""


_STOP_S = 60.0


def fetch_ready(group: Any, tag: str, timeout_s: float) -> list[tuple[int, Any]]:
    """Waits at most `timeout_s` for an answer to requests with a tag; returns all answers as (env-runner, answer).

    RLlib's own `fetch_ready_async_reqs` waits until all requests are answered or the time is over.

    Args:
        group: RLlib's EnvRunnerGroup, or a stand-in, which waits itself.
        tag: Tag of the requests.
        timeout_s: Longest wait, seconds.
    """
    manager = getattr(group, "_worker_manager", None)
    if manager is None:
        return list(group.fetch_ready_async_reqs(tags=tag, timeout_seconds=timeout_s))
    with RAY.insides("FaultTolerantActorManager._filter_calls_by_tag"):
        calls, *_ = manager._filter_calls_by_tag([tag])
    if calls and timeout_s > 0:
        ray.wait(calls, num_returns=1, timeout=timeout_s, fetch_local=False)
    return list(group.fetch_ready_async_reqs(tags=tag, timeout_seconds=0.0))


def requests_in_flight(group: Any, tag: str) -> Counter[int] | None:
    """Returns the number of open requests with a tag by env-runner; None if a stand-in cannot tell.

    RLlib forgets the requests of an env-runner that it takes out of service.
    """
    manager = getattr(group, "_worker_manager", None)
    if manager is None:
        count = getattr(group, "requests_in_flight", None)
        return None if count is None else Counter(count(tag))
    with RAY.insides("FaultTolerantActorManager._filter_calls_by_tag"):
        _, env_runners, _ = manager._filter_calls_by_tag([tag])
    return Counter(env_runners)


def healthy_remote(group: Any) -> list[int] | None:
    """Returns the env-runners that can be asked now; None if the only one is in this process.

    None can be asked for a while after all were lost. The one in this process has no engine then.
    """
    return list(group.healthy_env_runner_ids()) if group.num_remote_env_runners() else None


def call_env_runner(group: Any, env_runner: int, function: Callable[[Any], Any]) -> Any:
    """Begins to call a function with an env-runner, where it is; `take_answers` takes the answer.

    RLlib's own `foreach_env_runner` waits for all, or for a time.
    """
    manager = getattr(group, "_worker_manager", None)
    if manager is None:
        return group.call_env_runner(env_runner, function)
    return manager.actors()[env_runner].apply.remote(function)


def take_answers(group: Any, calls: dict[Any, int], timeout_s: float) -> dict[int, Any]:
    """Waits for at most `timeout_s` until a call is over, takes those that are out of `calls`, and returns the answers by env-runner.

    An env-runner that is lost gives none, and is out of service from then on, as with RLlib's own calls.

    Args:
        group: RLlib's EnvRunnerGroup, or a stand-in.
        calls: From `call_env_runner`, with their env-runners.
        timeout_s: Longest wait, seconds.

    Raises:
        RayTaskError: a call raised.
    """
    manager = getattr(group, "_worker_manager", None)
    if manager is None:
        return dict(group.take_answers(calls))
    ray.wait(list(calls), num_returns=1, timeout=timeout_s)
    over, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
    answers = {}
    for call in over:
        env_runner = calls.pop(call)
        try:
            answers[env_runner] = ray.get(call)
        except RayTaskError:
            raise
        except RayError:
            with RAY.insides("FaultTolerantActorManager.set_actor_state"):
                manager.set_actor_state(env_runner, healthy=False)
    return answers


def heartbeat_key(group: Any, env_runner: int) -> str | None:
    """Returns the key of an env-runner's signs of life in Ray's store; None for a stand-in. A restart does not change it."""
    manager = getattr(group, "_worker_manager", None)
    return None if manager is None else _heartbeat_key(manager.actors()[env_runner]._ray_actor_id.hex())


def own_heartbeat_key() -> str | None:
    """Returns the key for the actor that asks; None: this process is none."""
    actor = ray.get_runtime_context().get_actor_id() if ray.is_initialized() else None
    return None if actor is None else _heartbeat_key(actor)


def _heartbeat_key(actor: str) -> str:
    return f"tppo_heartbeat_{actor}"


def stop_env_runners(group: Any) -> None:
    """Lets env-runners end in order, and kills those that have not after a minute; RLlib would wait for ever."""
    with RAY.insides("EnvRunnerGroup._worker_manager"):
        manager = group._worker_manager
    actors = manager.actors()
    calls = [actor.stop.remote() for actor in actors.values()]
    _, late = ray.wait(calls, num_returns=len(calls), timeout=_STOP_S) if calls else ([], [])
    if late:
        logger.warning("%d of %d env-runners did not end within %g s, and are killed", len(late), len(calls), _STOP_S)
    kill_env_runners(group)


def kill_env_runners(group: Any) -> None:
    """Kills the env-runner actors of a group, whatever they are doing."""
    with RAY.insides("EnvRunnerGroup._worker_manager"):
        manager = group._worker_manager
    for env_runner in manager.actors():
        with suppress(Exception):
            delete_value(str(heartbeat_key(group, env_runner)))
    manager.clear()


def replace_env_runner(group: Any, env_runner: int) -> None:
    """Kills an env-runner, and lets Ray start it anew."""
    if getattr(group, "_worker_manager", None) is None:
        group.replace(env_runner)
        return
    with RAY.insides("EnvRunnerGroup._worker_manager"):
        manager = group._worker_manager
    # It is to get no request before it is back.
    manager.set_actor_state(env_runner, healthy=False)
    ray.kill(manager.actors()[env_runner], no_restart=False)


def write_value(key: str, value: str) -> None:
    """Writes a text into the key-value store of Ray's cluster, from any of its processes."""
    with RAY.insides("ray.experimental.internal_kv._internal_kv_put"):
        from ray.experimental.internal_kv import _internal_kv_put

        _internal_kv_put(key, value, overwrite=True)


def read_value(key: str) -> str | None:
    """Reads what `write_value` wrote; None where nothing is."""
    with RAY.insides("ray.experimental.internal_kv._internal_kv_get"):
        from ray.experimental.internal_kv import _internal_kv_get

        value = _internal_kv_get(key)
    return None if value is None else value.decode()


def delete_value(key: str) -> None:
    """Removes what `write_value` wrote."""
    with RAY.insides("ray.experimental.internal_kv._internal_kv_del"):
        from ray.experimental.internal_kv import _internal_kv_del

        _internal_kv_del(key)
