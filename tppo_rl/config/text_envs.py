"""Environments that the option `env` names: a Gymnasium id, behind the module or file that registers it."""

from __future__ import annotations

from typing import Any

import gymnasium

import tppo_rl.envs  # noqa: F401  (registers ours in every process)
from tppo_rl.config.sections.environment import EnvironmentOptions
from tppo_rl.core.errors import OptionError, unknown_value
from tppo_rl.core.registry import load_module


def env_spec(env: str) -> Any:
    """Returns Gymnasium's spec of `id`, `module:id` or `file.py:id`; imports the module.

    Raises:
        OptionError: no such module or environment.
    """
    module, separator, name = env.rpartition(":")
    try:
        if separator:
            load_module(module)
        return gymnasium.spec(name)
    except (ImportError, OSError, ValueError, TypeError) as error:
        raise OptionError(
            f"env={env!r}: {error}; what stands before the colon must be an importable module or a Python file"
        ) from None
    except gymnasium.error.Error:
        raise OptionError(unknown_value("env", env, list(gymnasium.registry))) from None


def make_text_env(environment: EnvironmentOptions, split: str) -> gymnasium.Env:
    """Makes the environment of a run.

    Args:
        environment: The run's options of the environment.
        split: "train" or "heldout".

    Raises:
        OptionError: no such module or environment.
        ValueError, TypeError: `env_config` holds arguments that the environment does not take.
    """
    assert environment.env is not None
    return gymnasium.make(env_spec(environment.env), disable_env_checker=True, split=split, **environment.env_config)


def num_problems(environment: EnvironmentOptions, split: str) -> int | None:
    """Returns the number of problems of a split, and None where the environment draws them without end or is not given."""
    if environment.env is None:
        return None
    env = make_text_env(environment, split)
    found = getattr(env.unwrapped, "num_problems", None)
    env.close()
    return found
