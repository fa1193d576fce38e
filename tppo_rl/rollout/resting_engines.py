"""Lets the engines of a synchronous run sleep while learners train on the same GPUs.

           waits for                              unblocked by
update     all engines asleep                     each env-runner, after what it does
engines    (asleep) new weights, or any request   the push after the update, which wakes them; an error, after which they are
                                                  told to wake
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from tppo_rl.core.errors import ProcessDied
from tppo_rl.rollout.rllib_internals import healthy_remote

logger = logging.getLogger(__name__)


class RestingEngines:
    """The engines of a group of env-runners, which rest during updates.

    Args:
        group: RLlib's EnvRunnerGroup.
        release: Lets learners give back memory of the GPU that they keep without using it.
        sleeps: Whether engines sleep at all; else nothing is done.
        timeout_s: Seconds that an env-runner has to fall asleep or to wake.
    """

    def __init__(self, group: Any, release: Callable[[], object], *, sleeps: bool, timeout_s: float) -> None:
        self._group = group
        self._release = release
        self._sleeps = sleeps
        self._timeout_s = timeout_s

    @contextmanager
    def asleep(self) -> Iterator[None]:
        """Inside, engines sleep. Afterwards they wait for new weights; after an error they are awake.

        Raises:
            Exception: the error of an engine that could not fall asleep.
        """
        if not self._sleeps:
            yield
            return
        try:
            self._tell("sleep")
            yield
            self._release()
        except BaseException:
            self._wake_after_error()
            raise

    def _wake_after_error(self) -> None:
        """Wakes what can be woken; the first error is the one to tell of."""
        try:
            self._release()
        except Exception as error:
            logger.warning("learners did not give memory back after an error: %s", error)
        try:
            self._tell("wake_up")
        except Exception as error:
            logger.warning("an engine could not be woken after an error, and tries again when it is asked: %s", error)

    def _tell(self, method: str) -> None:
        env_runners = healthy_remote(self._group)
        if env_runners is not None:
            answers = self._group.foreach_env_runner(
                method, remote_worker_ids=env_runners, local_env_runner=False, timeout_seconds=self._timeout_s
            )
        else:
            local = self._group.local_env_runner
            answers = [] if local is None else [getattr(local, method)()]
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        # One that was lost meanwhile has no memory either; one that is only slow has.
        silent = len(set(env_runners or ()).intersection(self._group.healthy_env_runner_ids())) - len(answers)
        if env_runners and silent > 0:
            raise ProcessDied(
                f"{silent} of {len(env_runners)} env-runners did not answer to {method} for {self._timeout_s:g} s (heartbeat_timeout_s)"
            )
