"""Questions to several env-runners at once, without an end that nobody sees.

                    waits for                                       unblocked by
ask_each            the answer of every env-runner that was asked   the answer; its loss; a silence of `silence_s`, after which
                                                                    the env-runner is killed, and Ray starts it anew
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import partial
from typing import Any

from tppo_rl.rollout.heartbeats import Heartbeats
from tppo_rl.rollout.rllib_internals import call_env_runner, replace_env_runner, take_answers

logger = logging.getLogger(__name__)

_LOOK_S = 1.0


def ask_each(
    group: Any,
    questions: Mapping[int, Callable[[Any], Any]],
    silence_s: float,
    meanwhile: Callable[[], None] | None = None,
) -> dict[int, Any]:
    """Calls a function with each of several env-runners, where it is.

    Args:
        group: RLlib's EnvRunnerGroup.
        questions: The functions, by env-runner.
        silence_s: Seconds after which a silent env-runner is started anew.
        meanwhile: Called whenever an answer has come, and about once a second.

    Returns:
        The answers by env-runner, in the order of the questions. Env-runners that were lost, or were started anew, have none.

    Raises:
        Exception: what is no loss, but an error of Ray's.
    """
    calls = {call_env_runner(group, env_runner, question): env_runner for env_runner, question in questions.items()}
    heartbeats = Heartbeats(group, silence_s)
    answers: dict[int, Any] = {}
    while calls:
        answers |= take_answers(group, calls, _LOOK_S)
        if meanwhile is not None:
            meanwhile()
        given_up = replace_hung(group, heartbeats, calls.values())
        # One that cannot even be killed is not waited for.
        calls = {call: env_runner for call, env_runner in calls.items() if env_runner not in given_up}
    return {env_runner: answers[env_runner] for env_runner in questions if env_runner in answers}


def ask_all(group: Any, method: str, env_runners: Collection[int], silence_s: float, **arguments: Any) -> list[Any]:
    """Calls a method of several env-runners as `ask_each` does, and returns the answers that there are."""
    question = partial(_call, method=method, arguments=arguments)
    return list(ask_each(group, dict.fromkeys(env_runners, question), silence_s).values())


def replace_hung(group: Any, heartbeats: Heartbeats, busy: Iterable[int]) -> list[int]:
    """Starts env-runners anew that have something to do and hang, and returns which."""
    hung = heartbeats.hung(set(busy).intersection(group.healthy_env_runner_ids()))
    for env_runner in hung:
        logger.warning(
            "env-runner %d has done nothing for %g s (heartbeat_timeout_s), and is killed; Ray starts it anew",
            env_runner,
            heartbeats.silence_s,
        )
        replace_env_runner(group, env_runner)
    return hung


def _call(env_runner: Any, *, method: str, arguments: Mapping[str, Any]) -> Any:
    return getattr(env_runner, method)(**arguments)
