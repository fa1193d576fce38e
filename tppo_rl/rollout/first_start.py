"""Waits for the first start of a group's env-runners, engines and all, with an end: RLlib would wait for ever.

                    waits for                       unblocked by
wait_for_start      every env-runner's first answer the answer; an error in its start; `_MOST_STARTS` deaths; `timeout_s`
"""

from __future__ import annotations

import time
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, RayActorError

from tppo_rl.core.errors import ProcessDied, RunError
from tppo_rl.rollout.heartbeats import sign_of
from tppo_rl.rollout.rllib_internals import call_env_runner, kill_env_runners

_LOOK_S = 1.0
_MOST_STARTS = 5
"""Starts of an env-runner's process after which the run ends: Ray itself starts a process again that dies in its start."""


def wait_for_start(group: Any, timeout_s: float, words: str = "env-runner") -> None:
    """Waits until all env-runner actors of a group have started; if one does not, all are killed.

    Args:
        group: RLlib's EnvRunnerGroup, just made.
        timeout_s: Longest wait, seconds, with that for room in Ray's cluster.
        words: What an env-runner of the group is called in messages.

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
                env_runner = calls.pop(call)
                if not _take(call, f"{words} {env_runner}"):
                    calls[call_env_runner(group, env_runner, _is_there)] = env_runner
            for env_runner in calls.values():
                if sign := sign_of(group, env_runner):
                    processes[env_runner].add(sign.split()[0])
            _check({one: len(processes[one]) for one in calls.values()}, deadline, timeout_s, words)
    except BaseException:
        kill_env_runners(group)
        raise


def _is_there(env_runner: Any) -> None:
    env_runner.assert_healthy()


def _take(call: Any, name: str) -> bool:
    """Returns whether an env-runner has answered; False: it cannot be reached for a while."""
    try:
        ray.get(call)
    except ActorUnavailableError:
        time.sleep(_LOOK_S)
        return False
    except RayActorError as error:
        if error.actor_init_failed:
            # Its first argument is the error of the actor's task, whose third one is what was raised.
            raise error.args[0].args[2] from None
        raise ProcessDied(
            f"{name} died while it started, and Ray does not start it again: {str(error).partition(chr(10))[0]}"
        ) from error
    return True


def _check(num_starts: dict[int, int], deadline: float, timeout_s: float, words: str) -> None:
    """Ends the wait for env-runners that have not answered.

    Args:
        num_starts: How often the process of each has begun, as far as it was seen.
    """
    for env_runner, number in num_starts.items():
        if number >= _MOST_STARTS:
            raise ProcessDied(
                f"the process of {words} {env_runner} died {number - 1} times while it started, often for want of memory; "
                "what it said last is in Ray's log of the env-runner"
            )
    if not num_starts or time.monotonic() < deadline:
        return
    hung = [env_runner for env_runner, number in num_starts.items() if number]
    without_room = [env_runner for env_runner, number in num_starts.items() if not number]
    reasons = []
    if hung:
        reasons.append(
            f"{_named(hung, words)}: the process runs, and its engine or its environment is not there; where they only start slowly, set "
            "a larger start_timeout_s"
        )
    if without_room:
        free = {kind: amount for kind, amount in ray.available_resources().items() if kind in ("CPU", "GPU")}
        reasons.append(
            f"{_named(without_room, words)}: no process has given a sign; Ray may have no room for one (free are {free}), its node may be "
            "slow, or it dies before it can say why, and Ray's logs have the reason"
        )
    raise RunError(f"not started after {timeout_s:g} s (start_timeout_s): {'; '.join(reasons)}")


def _named(env_runners: list[int], words: str) -> str:
    return f"{words}{'s' if len(env_runners) > 1 else ''} {', '.join(map(str, env_runners))}"
