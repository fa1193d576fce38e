"""Waits for the first start of a group's env-runners, engines and all, with an end: RLlib would wait for ever.

                    waits for                       unblocked by
wait_for_start      every env-runner's first answer the answer; an error in its start; `_MOST_STARTS` deaths; `timeout_s`
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import RayActorError

from tppo_rl.core.errors import ProcessDied, RunError
from tppo_rl.rollout.heartbeats import sign_of
from tppo_rl.rollout.rllib_internals import call_env_runner, kill_env_runners

_LOOK_S = 1.0
_MOST_STARTS = 5
"""Starts of an env-runner's process after which the run ends: Ray itself starts a process again that dies in its start."""


def wait_for_start(group: Any, timeout_s: float) -> None:
    """Waits until all env-runner actors of a group have started; if one does not, all are killed.

    Args:
        group: RLlib's EnvRunnerGroup, just made.
        timeout_s: Longest wait, seconds, with that for room in Ray's cluster.

    Raises:
        RunError: some have not started in time.
        ProcessDied: one died again and again while it started, or was killed.
        Exception: what one of them raised.
    """
    env_runners = range(1, 1 + group.num_remote_env_runners())
    calls = {call_env_runner(group, env_runner, _is_there): env_runner for env_runner in env_runners}
    processes: dict[int, set[str]] = {env_runner: set() for env_runner in env_runners}
    deadline = time.monotonic() + timeout_s
    try:
        while calls:
            over, _ = ray.wait(list(calls), num_returns=len(calls), timeout=_LOOK_S)
            for call in over:
                _take(call, calls.pop(call))
            for env_runner in calls.values():
                if sign := sign_of(group, env_runner):
                    processes[env_runner].add(sign.split()[0])
            _check({env_runner: len(processes[env_runner]) for env_runner in calls.values()}, deadline, timeout_s)
    except BaseException:
        kill_env_runners(group)
        raise


def _is_there(env_runner: Any) -> None:
    env_runner.assert_healthy()


def _take(call: Any, env_runner: int) -> None:
    try:
        ray.get(call)
    except RayActorError as error:
        if error.actor_init_failed:
            # Its first argument is the error of the actor's task, whose third one is what was raised.
            raise error.args[0].args[2] from None
        raise ProcessDied(
            f"env-runner {env_runner} died while it started, and Ray does not start it again: {str(error).partition(chr(10))[0]}"
        ) from error


def _check(num_starts: dict[int, int], deadline: float, timeout_s: float) -> None:
    """Ends the wait for env-runners that have not answered.

    Args:
        num_starts: How often the process of each has begun, as far as it was seen.
    """
    for env_runner, number in num_starts.items():
        if number >= _MOST_STARTS:
            raise ProcessDied(
                f"the process of env-runner {env_runner} died {number - 1} times while it started, often for want of memory; "
                "what it said last is in Ray's log of the env-runner"
            )
    if not num_starts or time.monotonic() < deadline:
        return
    hung = [env_runner for env_runner, number in num_starts.items() if number]
    without_room = [env_runner for env_runner, number in num_starts.items() if not number]
    reasons = []
    if hung:
        reasons.append(
            f"{_named(hung)}: the process runs, and its engine or its environment is not there; where they only start slowly, set "
            "a larger start_timeout_s"
        )
    if without_room:
        free = {kind: amount for kind, amount in ray.available_resources().items() if kind in ("CPU", "GPU")}
        reasons.append(
            f"{_named(without_room)}: no process has given a sign; Ray has no room for it (free are {free}), and you end what else runs "
            "there, or its node is too slow"
        )
    raise RunError(f"not started after {timeout_s:g} s (start_timeout_s): {'; '.join(reasons)}")


def _named(env_runners: list[int]) -> str:
    return f"env-runner{'s' if len(env_runners) > 1 else ''} {', '.join(map(str, env_runners))}"
