"""Run files: the YAML schema of `rllib train file`, overrides from the command line, and their checks.

    quickstart:                         # name of the experiment; several in one file run one after another
      run: TPPO
      env: tppo_rl/ArithmeticChain-v0
      stop: {num_env_steps_sampled_lifetime: 400000}
      checkpoint_config: {checkpoint_frequency: 10}
      config: {window_length: {grid_search: [64, 128]}, lr: 1e-4}

Nothing heavy is imported here.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, PositiveInt, ValidationError, model_validator

from tppo_rl.checks import (
    check_environment,
    check_model,
    check_options,
    rllib_keys,
    unknown_key,
    unknown_value,
)
from tppo_rl.options import OptionError, Options
from tppo_rl.presets import PRESETS

GRID = "grid_search"


class CheckpointConfig(BaseModel):
    """When checkpoints are saved, in Tune's words."""

    model_config = ConfigDict(extra="forbid", strict=True)
    checkpoint_frequency: int = 0
    """Iterations between checkpoints; 0 saves only at the end."""
    checkpoint_at_end: bool = True
    num_to_keep: PositiveInt | None = 2
    """Newest checkpoints that are kept; None keeps all."""


class Experiment(BaseModel):
    """One experiment of a run file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    run: str
    env: str | None = None
    stop: dict[str, int | float] = {}
    checkpoint_config: CheckpointConfig = CheckpointConfig()
    config: dict[str, Any] = {}
    num_samples: PositiveInt = 1

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        if self.env is not None and self.config.get("env", self.env) != self.env:
            raise ValueError(f"env={self.env!r} and config.env={self.config['env']!r} differ; give one")
        return self

    @property
    def is_sweep(self) -> bool:
        """Whether it stands for several trials."""
        return self.num_samples > 1 or any(True for _ in _grids(self.config))

    def options(self) -> dict[str, Any]:
        """The config with the environment in it; grids as they are written."""
        return self.config | ({"env": self.env} if self.env is not None else {})

    def points(self) -> Iterator[dict[str, Any]]:
        """The options of every point of the grid."""
        grids = list(_grids(self.options()))
        for values in itertools.product(*(choices for _, choices in grids)):
            point = _copy(self.options())
            for (path, _), value in zip(grids, values, strict=True):
                _put(point, path, value)
            yield point


def load_run_file(path: Path, overrides: Sequence[str] = ()) -> list[Experiment]:
    """Reads and checks a run file.

    Args:
        path: the YAML file.
        overrides: `key=value` texts, see `apply_override`; they apply to every experiment.

    Raises:
        OptionError: no such file, broken YAML, or a bad key or value; says where.
    """
    if not path.is_file():
        raise OptionError(f"file={str(path)!r}: no such run file; the shipped ones are in configs/")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"file={str(path)!r}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict) or not content:
        raise OptionError(f"file={str(path)!r}: must map experiment names to experiments, see configs/quickstart.yaml")
    return [make_experiment(str(name), body, overrides) for name, body in content.items()]


def make_experiment(name: str, body: Any, overrides: Sequence[str] = ()) -> Experiment:
    """Builds an experiment from its YAML mapping and checks every point of its grid.

    Raises:
        OptionError: names key, value and remedy.
    """
    if not isinstance(body, dict):
        raise OptionError(f"{name}={body!r}: an experiment is a mapping with the keys run, env, stop and config")
    body = _copy(body)
    for override in overrides:
        apply_override(body, override)
    known = set(Experiment.model_fields) - {"name"}
    for key in body:
        if key not in known:
            raise OptionError(unknown_key(f"{name}.{key}", body[key], [f"{name}.{word}" for word in known]))
    try:
        experiment = Experiment(name=name, **body)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join([name, *map(str, problem["loc"])])
        raise OptionError(f"{key}={problem['input']!r}: {problem['msg']}") from None
    if experiment.run not in PRESETS:
        raise OptionError(unknown_value(f"{name}.run", experiment.run, PRESETS))
    if not experiment.stop:
        raise OptionError(
            f"{name}.stop={{}}: the run would never end; give a limit, for example {{num_env_steps_sampled_lifetime: 400000}}"
        )
    check_experiment(experiment)
    return experiment


def check_experiment(experiment: Experiment) -> None:
    """Checks every point of the grid without starting anything.

    Raises:
        OptionError: names key, value and remedy.
    """
    for path, choices in _grids(experiment.options()):
        if not isinstance(choices, list) or not choices:
            raise OptionError(f"{'.'.join(path)}.{GRID}={choices!r}: must be a list of at least one value")
    unknown = set(experiment.options()) - set(Options.model_fields)
    other_keys = rllib_keys() if unknown else frozenset()
    for point in experiment.points():
        options = check_options(point, algorithm=experiment.run, other_keys=other_keys)
        check_model(options)
        check_environment(options)


def apply_override(body: dict[str, Any], override: str) -> None:
    """Applies `key=value` to an experiment's mapping.

    The value is YAML. A key is an option (`lr`, `env_config.max_operands`) or stands at the experiment's top level
    (`stop.training_iteration`, `num_samples`, `env`).

    Raises:
        OptionError: not of that form.
    """
    key, value = parse_override(override)
    path = key.split(".")
    if path[0] in set(Experiment.model_fields) - {"name", "config"}:
        _put(body, path, value)
    else:
        _put(body.setdefault("config", {}), path[1:] if path[0] == "config" else path, value)


def parse_override(override: str) -> tuple[str, Any]:
    """Splits `key=value`; the value is YAML.

    Raises:
        OptionError: not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise OptionError(f"--set {override!r}: must be key=value, for example --set seed=1")
    return key, parse_yaml(text)


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads `1e-4` as a text; here it is the number that everyone means."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
    """Reads a YAML or JSON text as run files are read.

    Raises:
        OptionError: not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise OptionError(f"{text!r}: not valid YAML or JSON: {' '.join(str(error).split())}") from None


def _grids(options: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for key, value in options.items():
        if isinstance(value, Mapping):
            if set(value) == {GRID}:
                yield (*path, key), value[GRID]
            else:
                yield from _grids(value, (*path, key))


def _put(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    for part in path[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise OptionError(f"{'.'.join(path)}: {part} holds {inner!r}, which has no keys")
        target = inner
    target[path[-1]] = value


def _copy(value: Any) -> Any:
    return {key: _copy(inner) for key, inner in value.items()} if isinstance(value, dict) else value
