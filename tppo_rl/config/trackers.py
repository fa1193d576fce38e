"""Checks of the option `trackers`: known names, installed packages, arguments that a tracker takes."""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Mapping
from typing import Any

from tppo_rl.core.errors import OptionError, unknown_key, unknown_value

_MLFLOW_ARGUMENTS = ("tracking_uri", "experiment", "run_name", "tags")
TRACKERS = ("wandb", "mlflow", "trackio")
_OURS = {"wandb": ("config", "id", "resume"), "trackio": ("config", "resume"), "mlflow": ()}
"""Arguments that a run gives itself."""


def check_trackers(trackers: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks every tracker and its arguments; imports the packages that it names.

    Raises:
        OptionError: an unknown tracker or argument, or a package that is not installed.
    """
    for name, arguments in trackers.items():
        if name not in TRACKERS:
            raise OptionError(unknown_value("trackers", name, list(TRACKERS)))
        if importlib.util.find_spec(name) is None:
            raise OptionError(f"trackers.{name}={dict(arguments)!r}: its package is not installed: pip install {name}")
        known = [argument for argument in _arguments(name) if argument not in _OURS[name]]
        for key, value in arguments.items():
            if key not in known:
                raise OptionError(unknown_key(f"trackers.{name}.{key}", value, [f"trackers.{name}.{k}" for k in known]))


def _arguments(name: str) -> list[str]:
    if name == "mlflow":
        return list(_MLFLOW_ARGUMENTS)
    return list(inspect.signature(importlib.import_module(name).init).parameters)
