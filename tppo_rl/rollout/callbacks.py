"""RLlib's callbacks of an env-runner, called with fragments instead of RLlib's episodes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.callbacks.utils import make_callback
from ray.rllib.utils import force_list

from tppo_rl.core.fragments import Fragment

logger = logging.getLogger(__name__)


class EnvRunnerCallbacks:
    """The user's callbacks in the process of one env-runner.

    Args:
        env_runner: RLlib's env-runner, with `config` and `metrics`.
    """

    def __init__(self, env_runner: Any) -> None:
        self._env_runner = env_runner
        self._objects = [found() for found in force_list(env_runner.config.callbacks_class)]

    def environment_created(self, env: Any, env_config: dict[str, Any]) -> None:
        """Calls `on_environment_created`."""
        self._call("on_environment_created", env=env, env_context=env_config)

    def warn_of_workers(self) -> None:
        """Warns of `on_environment_created`, which nothing calls where environments are in scoring workers."""
        name = "on_environment_created"
        has_own = getattr(self._env_runner.config, f"callbacks_{name}") or any(
            getattr(type(one), name) is not getattr(RLlibCallback, name) for one in self._objects
        )
        if has_own:
            logger.warning("%s is not called for environments in scoring workers; set scoring_workers to 0", name)

    def sampled(self, fragments: Sequence[Fragment]) -> None:
        """Calls `on_episode_end` with the last fragment of each finished episode, then `on_sample_end` with all of them."""
        for fragment in fragments:
            if fragment.finished:
                # A fragment holds its whole context, so there are no earlier chunks to put together.
                self._call(
                    "on_episode_end", episode=fragment, prev_episode_chunks=[], env=None, env_index=-1, rl_module=None
                )
        self._call("on_sample_end", samples=fragments)

    def _call(self, name: str, **arguments: Any) -> None:
        env_runner = self._env_runner
        make_callback(
            name,
            self._objects,
            getattr(env_runner.config, f"callbacks_{name}"),
            kwargs={"env_runner": env_runner, "metrics_logger": env_runner.metrics, **arguments},
        )
