"""Run files: the YAML schema of `rllib train file`, overrides from the command line, and their checks.

    quickstart:                         # name of the experiment; several in one file run one after another
      run: TPPO
      env: tppo_rl/ArithmeticChain-v0
      stop: {num_env_steps_sampled_lifetime: 400000}
      checkpoint_config: {checkpoint_frequency: 10}
      config: {window_length: {grid_search: [64, 128]}, lr: {loguniform: [1e-5, 1e-3]}}
      seeds: 3                          # every trial with seeds 0, 1, 2
      tune_config: {num_samples: 4, scheduler: {type: asha, grace_period: 5}}

Search words are in `tppo_rl.config.search_space`, the keys of `tune_config` in `tppo_rl.config.sweep_options`. Nothing
heavy is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, model_validator

from tppo_rl.config.attention import check_attention
from tppo_rl.config.checks import (
    check_environment,
    check_model,
    check_options,
    unknown_key,
)
from tppo_rl.config.experiment_checks import check_draws, check_name, check_stop
from tppo_rl.config.foreign_sources import rllib_keys
from tppo_rl.config.options import MAPPINGS, OPTIONS, RENAMED_KEYS, algorithm_spec, place_of
from tppo_rl.config.places import absolute_object, absolute_place, with_absolute_places
from tppo_rl.config.rllib_options import RLLIB_MAPPINGS, check_no_classes, check_rllib_keys, with_callbacks
from tppo_rl.config.search_space import (
    GRID,
    axes,
    check_axis,
    check_size,
    check_words,
    copy_mapping,
    grid_points,
    points_to_check,
    put,
    put_all,
)
from tppo_rl.config.sections.run import LARGEST_SEED
from tppo_rl.config.sweep_options import (
    LEAST_PBT_CHECKPOINTS,
    MOST_TRIALS,
    TuneOptions,
    check_tune_options,
    mutation_axes,
    name_and_arguments,
)
from tppo_rl.config.yaml_text import parse_yaml, read_yaml
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.errors import OptionError
from tppo_rl.core.paths import exists
from tppo_rl.core.waiting import stage

_Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]


class CheckpointConfig(BaseModel):
    """When checkpoints are saved, in Tune's words, and how."""

    model_config = ConfigDict(extra="forbid", strict=True)
    checkpoint_frequency: NonNegativeInt = 0
    """Iterations between checkpoints; 0 saves only at the end."""
    checkpoint_at_end: bool = True
    num_to_keep: PositiveInt | None = 2
    """Number of newest checkpoints to keep; None keeps all."""
    in_background: bool | None = None
    """Whether the run trains on while the files of a checkpoint are written, out of a copy of weights and moments. None: where the
    copy fits into this machine's memory. Checkpoints of sweeps are Tune's, and the last one of a run has nothing to go on with."""


class Experiment(BaseModel):
    """One experiment of a run file."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str
    run: str
    env: str | None = None
    stop: dict[str, int | float] = {}
    checkpoint_config: CheckpointConfig = CheckpointConfig()
    max_failures: NonNegativeInt = 0
    """Times that a run goes on from its newest checkpoint by itself after a learner or an engine has died, and a trial of a sweep after any
    error."""
    config: dict[str, Any] = {}
    num_samples: Annotated[int, Field(gt=0, le=MOST_TRIALS)] | None = None
    seeds: (
        Annotated[int, Field(gt=0, le=MOST_TRIALS)] | Annotated[list[_Seed], Field(max_length=MOST_TRIALS)] | None
    ) = None
    """Seeds that every trial is run with; a number n stands for 0 to n - 1. None: the option `seed`."""
    tune_config: TuneOptions = TuneOptions()

    @model_validator(mode="after")
    def _one_environment(self) -> Self:
        if self.env is not None and self.config.get("env", self.env) != self.env:
            raise ValueError(f"env={self.env!r} and config.env={self.config['env']!r} differ; give one")
        return self

    @model_validator(mode="after")
    def _one_number_of_samples(self) -> Self:
        given = {self.num_samples, self.tune_config.num_samples} - {None}
        if len(given) == 2:
            raise ValueError(
                f"num_samples={self.num_samples} and tune_config.num_samples={self.tune_config.num_samples} differ; give one"
            )
        return self

    @model_validator(mode="after")
    def _one_set_of_seeds(self) -> Self:
        if self.seeds is not None and "seed" in self.config:
            raise ValueError(
                f"seeds={self.seeds!r} and config.seed={self.config['seed']!r} both give the seed; give one"
            )
        if isinstance(self.seeds, list) and (not self.seeds or len(set(self.seeds)) < len(self.seeds)):
            raise ValueError(f"seeds={self.seeds!r}: must be different numbers, one at least, such as [0, 1, 2]")
        return self

    @property
    def spec(self) -> AlgorithmSpec:
        """The algorithm that `run` names.

        Raises:
            OptionError: no such algorithm.
        """
        return algorithm_spec(self.run, key=f"{self.name}.run")

    @property
    def samples(self) -> int:
        """Number of draws of the random values."""
        return self.num_samples or self.tune_config.num_samples or 1

    @property
    def num_trials(self) -> int:
        """Number of trials of the sweep."""
        return self.samples * math.prod(len(axis.argument) for axis in axes(self.options()) if axis.is_grid)

    @property
    def is_sweep(self) -> bool:
        """Whether Tune runs the experiment: it has several trials, or a `tune_config`."""
        several = self.samples > 1 or any(True for _ in axes(self.options()))
        return several or self.tune_config != TuneOptions()

    @property
    def checkpoints_to_keep(self) -> int | None:
        """Number of newest checkpoints that a trial keeps, by default as many as its scheduler needs; None: all."""
        is_pbt = name_and_arguments(self.tune_config.scheduler)[0] == "pbt"
        if is_pbt and "num_to_keep" not in self.checkpoint_config.model_fields_set:
            return LEAST_PBT_CHECKPOINTS
        return self.checkpoint_config.num_to_keep

    def options(self) -> dict[str, Any]:
        """Returns the config with environment and seeds in it; search words stay as they are written."""
        options = self.config | ({"env": self.env} if self.env is not None else {})
        if self.seeds is not None:
            seeds = list(range(self.seeds)) if isinstance(self.seeds, int) else self.seeds
            options |= {"seed": {GRID: seeds}}
        return options

    def points(self) -> Iterator[dict[str, Any]]:
        """Yields the options of every grid point; random values stay as they are written."""
        return grid_points(self.options())


def load_run_file(path: Path, overrides: Sequence[str] = ()) -> list[Experiment]:
    """Reads and checks a run file.

    Args:
        path: the YAML file.
        overrides: `key=value` texts, see `apply_override`; they apply to every experiment.

    Raises:
        OptionError: no such file, broken YAML, or a bad key or value; the message says where.
    """
    if not exists(path) or not path.is_file():
        raise OptionError(f"file={str(path)!r}: no such run file; the shipped ones are in configs/")
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        raise OptionError(f"file={str(path)!r}: must map experiment names to experiments, see configs/quickstart.yaml")
    return [make_experiment(name, body, overrides) for name, body in content.items()]


def make_experiment(name: str, body: Any, overrides: Sequence[str] = ()) -> Experiment:
    """Builds an experiment from its YAML mapping and checks every point of its grid.

    Raises:
        OptionError: names key, value and remedy.
    """
    check_name(name)
    if not isinstance(body, dict):
        raise OptionError(f"{name}={body!r}: an experiment is a mapping with the keys run, env, stop and config")
    body = copy_mapping(body)
    for override in overrides:
        apply_override(body, override)
    known = set(Experiment.model_fields) - {"name"}
    for key in body:
        if key not in known:
            raise OptionError(unknown_key(f"{name}.{key}", body[key], [f"{name}.{word}" for word in known]))
    try:
        experiment = Experiment(name=name, **body)
    except ValidationError as error:
        raise OptionError(_explain(name, body, error)) from None
    _ = experiment.spec
    if not experiment.stop:
        raise OptionError(
            f"{name}.stop={{}}: the run would never end; give a limit, for example {{num_env_steps_sampled_lifetime: 400000}}"
        )
    if "env_config" in experiment.config:
        # Before the check, so that data are read once for it and for the run.
        data = absolute_place("env_config", experiment.config["env_config"])
        experiment = experiment.model_copy(update={"config": experiment.config | {"env_config": data}})
    check_experiment(experiment)
    places = {"run": absolute_object(experiment.run), "config": with_absolute_places(experiment.config)}
    return experiment.model_copy(update=places | {"env": experiment.env and absolute_object(experiment.env)})


def _explain(name: str, body: Mapping[str, Any], error: ValidationError) -> str:
    problem = error.errors()[0]
    path = [str(part) for part in problem["loc"]]
    # After the key come the types that were tried.
    place = place_of(path[0], body[path[0]], problem["loc"][1:]) if path and path[0] in body else ".".join(path)
    key = f"{name}.{place}"
    message = problem["msg"].removeprefix("Value error, ")
    if not path:
        return f"{name}: {message}"
    if problem["type"] == "extra_forbidden":
        sections: dict[str, type[BaseModel]] = {"tune_config": TuneOptions, "checkpoint_config": CheckpointConfig}
        section = sections[path[0]]
        return unknown_key(key, problem["input"], [f"{name}.{path[0]}.{word}" for word in section.model_fields])
    tried = [
        one for one in error.errors() if one["loc"][: len(place.split("."))] == problem["loc"][: len(place.split("."))]
    ]
    reasons = dict.fromkeys(one["msg"].removeprefix("Value error, ").removeprefix("Input should be ") for one in tried)
    if message.startswith("Input should be "):
        message = f"input should be {' or '.join(reasons)}"
    return f"{key}={problem['input']!r}: {message}"


def check_experiment(experiment: Experiment) -> None:
    """Checks every grid point, both ends of every range, and the sweep's scheduler, without starting anything.

    Raises:
        OptionError: names key, value and remedy.
    """
    options = experiment.options()
    check_words(options, MAPPINGS | RLLIB_MAPPINGS)
    for axis in axes(options):
        check_axis(axis)
    check_stop(experiment.stop, experiment.config, f"{experiment.name}.stop")
    check_size(experiment.config, f"{experiment.name}.config")
    if experiment.checkpoint_config.in_background:
        _check_background(experiment)
    if experiment.is_sweep:
        check_tune_options(
            experiment.tune_config,
            options,
            stop=experiment.stop,
            num_to_keep=experiment.checkpoints_to_keep,
            num_trials=experiment.num_trials,
            where=f"{experiment.name}.tune_config",
        )
    elif experiment.max_failures and not experiment.checkpoint_config.checkpoint_frequency:
        raise OptionError(
            f"{experiment.name}.max_failures={experiment.max_failures}: a run goes on from its newest checkpoint, and saves none on its way; "
            "set checkpoint_config.checkpoint_frequency, for example to 10"
        )
    check_draws(experiment.samples, experiment.tune_config, options, experiment.name)
    unknown = set(options) - set(OPTIONS) - set(RENAMED_KEYS)
    other_keys = rllib_keys() if unknown else frozenset()
    others = {key: options[key] for key in unknown}
    check_rllib_keys(others, OPTIONS)
    check_no_classes(others)
    with_callbacks(others)
    if experiment.seeds is not None:
        # Seeds are checked already, and go together with everything.
        options["seed"] = {GRID: options["seed"][GRID][:1]}
    points = list(points_to_check(options))
    points += [
        put_all(points[0], {axis.path: value})
        for axis in mutation_axes(experiment.tune_config)
        for value in axis.values()
    ]
    # It imports environments.
    from tppo_rl.config.value_forms import check_value_form
    from tppo_rl.config.vocabularies import check_vocabularies

    worlds = set()
    for point in points:
        checked = check_options(point, experiment.spec, other_keys=other_keys)
        check_attention(checked)
        world = repr([checked.value(key) for key in _WORLD])
        if world not in worlds:
            worlds.add(world)
            with stage("looking at the model and the data"):
                check_model(checked)
                check_vocabularies(checked)
                check_environment(checked)
                check_value_form(checked)


def _check_background(experiment: Experiment) -> None:
    key = f"{experiment.name}.checkpoint_config.in_background=true"
    if experiment.is_sweep:
        raise OptionError(
            f"{key}: trials of a sweep hand their checkpoints to Tune, which takes whole ones; leave it out"
        )
    if not experiment.checkpoint_config.checkpoint_frequency:
        raise OptionError(
            f"{key}: the only checkpoint is that of the end, when nothing is trained any more; set "
            "checkpoint_config.checkpoint_frequency, for example to 10, or leave it out"
        )


_WORLD = (
    "env",
    "env_config",
    "policy_model",
    "critic",
    "reference_model",
    "max_prompt_length",
    "max_response_length",
    "rewards",
    "critic_loss",
    "critic_sees_answer",
    "critic_initial_value",
    "value_range",
    "value_bins",
    "value_clip",
    "kl_coef",
    "kl_in",
    "overlong_fraction",
    "wrong_reward",
)
"""Options that `check_model`, `check_environment` and `check_value_form` read."""


def apply_override(body: dict[str, Any], override: str) -> None:
    """Applies `key=value` to an experiment's mapping.

    The value is YAML. A key is an option (`lr`, `env_config.max_operands`) or stands at the experiment's top level
    (`stop.training_iteration`, `num_samples`, `env`).

    Raises:
        OptionError: the text is not of that form.
    """
    key, value = parse_override(override)
    path = key.split(".")
    if path[0] not in set(Experiment.model_fields) - {"name", "config"}:
        path = ["config", *(path[1:] if path[0] == "config" else path)]
    if path == ["config"] or "" in path:
        raise OptionError(f"--set {override!r}: {key!r} names no option; write for example --set config.seed=1")
    put(body, path, value)


def parse_override(override: str) -> tuple[str, Any]:
    """Splits `key=value`; the value is YAML.

    Raises:
        OptionError: the text is not of that form.
    """
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise OptionError(f"--set {override!r}: must be key=value, for example --set seed=1")
    return key, parse_yaml(text)
