"""RLlib's group of env-runners from inside: the attributes that we use beside its documented API.

`tppo_rl.core.insides` explains `CONTRACT`.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import ray

from tppo_rl.core.insides import RAY, Contract

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


def kill_env_runners(group: Any) -> None:
    """Kills the env-runner actors of a group, whatever they are doing."""
    with RAY.insides("EnvRunnerGroup._worker_manager"):
        group._worker_manager.clear()


def replace_env_runner(group: Any, env_runner: int) -> None:
    """Kills an env-runner, and lets Ray start it anew."""
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
