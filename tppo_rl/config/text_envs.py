"""Environments that the option `env` names: a Gymnasium id, behind the module or file that registers it."""

from __future__ import annotations

from typing import Any

import gymnasium

import tppo_rl.envs  # registers ours in every process
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


def registration(env: str) -> tuple[str, str] | None:
    """Returns id and place of an environment that code of this process has registered, for processes that do not run that code.

    Returns:
        None where every process finds it by its name.

    Raises:
        OptionError: no such environment, or no other process can find its class.
    """
    if ":" in env or env in tppo_rl.envs.ENTRY_POINTS:
        return None
    spec = env_spec(env)
    place = spec.entry_point
    if not isinstance(place, str):
        place = f"{getattr(place, '__module__', '')}:{getattr(place, '__qualname__', '')}"
    nowhere = place.startswith((":", "__main__:", "tppo_rl_user_")) or place.endswith(":") or "<" in place
    if nowhere or spec.kwargs:
        raise OptionError(
            f"env={env!r}: scoring workers are processes of their own and cannot find what registers it; write `module:id` or "
            "`file.py:id`, or set scoring_workers to 0"
        )
    return spec.id, place


def make_text_env(environment: EnvironmentOptions, split: str) -> gymnasium.Env:
    """Makes the environment of a run.

    Args:
        environment: The run's options of the environment.
        split: "train" or "heldout".

    Raises:
        OptionError: no such module or environment, `env_config` holds arguments that it does not take, or its class fails.
    """
    assert environment.env is not None
    spec = env_spec(environment.env)
    try:
        return gymnasium.make(spec, disable_env_checker=True, split=split, **environment.env_config)
    except (TypeError, ValueError) as error:
        # Environments name their option and its value first.
        named = str(error).partition("=")[0].partition(".")[0] in environment.env_config
        raise OptionError(f"env_config{'.' if named else ': '}{error}") from error
    except Exception as error:
        # Gymnasium's own environments want packages that may be absent, and a class of the user's may raise anything.
        raise OptionError(
            f"env={environment.env!r}: cannot be made: {type(error).__name__}: {error}; install what it needs, or correct it"
        ) from error


def num_problems(environment: EnvironmentOptions, split: str) -> int | None:
    """Returns the number of problems of a split, and None where the environment draws them without end or is not given."""
    if environment.env is None:
        return None
    env = make_text_env(environment, split)
    found = getattr(env.unwrapped, "num_problems", None)
    env.close()
    return found
