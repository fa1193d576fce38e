"""RLlib's group of env-runners from inside: what we use of it beside its documented API.

See `tppo_rl.core.insides` for what `CONTRACT` is.
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
    "ray.rllib.utils.actor_manager:FaultTolerantActorManager": ("_filter_calls_by_tag", "fetch_ready_async_reqs"),
}
"""Beside these a group has `_worker_manager`, which is set when it is made, and which the tests of the pipeline read."""


def fetch_ready(group: Any, tag: str, timeout_s: float) -> list[tuple[int, Any]]:
    """Answers to requests with a tag, as (env-runner, answer): waits until there is one, for at most `timeout_s`.

    RLlib's own `fetch_ready_async_reqs` waits until all requests are answered or the time is over.

    Args:
        group: RLlib's EnvRunnerGroup, or a stand-in, which waits itself.
        tag: Of the requests.
        timeout_s: Longest wait.
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
    """Unanswered requests with a tag by env-runner; None where a stand-in cannot tell.

    RLlib forgets the requests of an env-runner that it takes out of service.
    """
    manager = getattr(group, "_worker_manager", None)
    if manager is None:
        count = getattr(group, "requests_in_flight", None)
        return None if count is None else Counter(count(tag))
    with RAY.insides("FaultTolerantActorManager._filter_calls_by_tag"):
        _, env_runners, _ = manager._filter_calls_by_tag([tag])
    return Counter(env_runners)
