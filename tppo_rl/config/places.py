"""Makes relative places absolute: other processes and Tune's trials run in folders of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tppo_rl.config.options import OPTIONS, takes_a_part
from tppo_rl.core.paths import exists, expanded

_MODELS = frozenset({"policy_model", "critic", "reference_model"})
_OBJECTS = frozenset({"env", "engine", *(key for key in OPTIONS if takes_a_part(key))})


def with_absolute_places(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with the whole paths of objects' files (`file.py:object`) and models' folders."""
    return {key: absolute_place(key, value) for key, value in options.items()}


def absolute_place(key: str, value: Any) -> Any:
    """Makes the value of one option absolute, or each of the values that it takes in a sweep."""
    if key in _MODELS:
        return _each(value, _absolute_folder)
    if key == "env_config":
        return _with_absolute_data(value)
    if key == "rewards":
        return _with_absolute_models(_each(value, absolute_object))
    return _each(value, absolute_object) if key in _OBJECTS else value


def absolute_object(place: str) -> str:
    """Returns `file.py:object` with the file's whole path if the file exists here, and any other text unchanged."""
    file, separator, name = place.rpartition(":")
    is_file = separator and file.endswith(".py") and exists(Path(file)) and Path(file).is_file()
    return f"{Path(file).resolve()}:{name}" if is_file else place


def _with_absolute_models(value: Any) -> Any:
    """Returns rewards with the whole paths of reward models' folders."""
    if isinstance(value, list):
        return [_with_absolute_models(one) for one in value]
    if isinstance(value, Mapping) and value.get("type") == "model" and isinstance(value.get("model"), str):
        return {**value, "model": _absolute_folder(value["model"])}
    return value


def _absolute_folder(model: str) -> str:
    return str(Path(model).resolve()) if exists(Path(model)) and Path(model).is_dir() else model


def _with_absolute_data(value: Any) -> Any:
    """Makes the places in an environment's options absolute: `source` of data, also of held-out ones, and `verifier`.

    What is no file or folder here stays as it is, since it may be an id of a hub, or mean something else to an environment
    of the user's.
    """
    if isinstance(value, list):
        return [_with_absolute_data(one) for one in value]
    if not isinstance(value, Mapping):
        return value
    changes = {"source": _absolute_data, "verifier": absolute_object}
    return {
        key: _each(inner, changes[key]) if key in changes else _with_absolute_data(inner)
        for key, inner in value.items()
    }


def _absolute_data(place: str) -> str:
    path = expanded(place)
    return str(path.resolve()) if place and exists(path) else place


def _each(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, list):
        return [_each(one, change) for one in value]
    if isinstance(value, Mapping):
        return {key: _each(one, change) for key, one in value.items()}
    return value
