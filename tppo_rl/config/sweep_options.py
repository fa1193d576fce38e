"""`tune_config` of a run file: how a sweep samples, stops and perturbs trials, in Tune's words, checked without Ray.

    tune_config:
      num_samples: 8
      metric: heldout_latest/sampled/accuracy
      mode: max
      scheduler: {type: asha, grace_period: 5, reduction_factor: 3}
      search_alg: {type: random, random_state: 1}
      max_concurrent_trials: 2

A scheduler or a searcher is a name, or a mapping of `type` and the arguments of Tune's class of that name.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from tppo_rl.config.foreign_sources import constructor_arguments
from tppo_rl.config.options import OPTIONS
from tppo_rl.config.search_space import WORDS, Axis, axes, check_axis
from tppo_rl.core.errors import OptionError, unknown_key, unknown_value
from tppo_rl.core.result_keys import HELDOUT_KEYS, check_spelling

HELDOUT_ACCURACY = "heldout_latest/sampled/accuracy"
MEAN_RETURN = "rollout/return_mean"
LEAST_PBT_CHECKPOINTS = 4
"""Fewest checkpoints to keep with PBT: a trial may wait for its turn before it loads another's checkpoint, which must still
exist by then."""

MOST_TRIALS = 10_000
"""Trials of a sweep; also the most seeds and draws."""
PERTURBABLE = frozenset(key for key, option in OPTIONS.items() if option.perturbable)
"""Options that may differ between the run that saved a checkpoint and the one that goes on from it."""


class _Class(NamedTuple):
    """A class of Tune: its source file, its name, and the package that it needs."""

    file: str
    name: str
    needs: str | None = None


SCHEDULERS: dict[str, _Class | None] = {
    "fifo": None,
    "asha": _Class("schedulers/async_hyperband.py", "AsyncHyperBandScheduler"),
    "pbt": _Class("schedulers/pbt.py", "PopulationBasedTraining"),
}
SEARCHERS: dict[str, _Class] = {
    "random": _Class("search/basic_variant.py", "BasicVariantGenerator"),
    "optuna": _Class("search/optuna/optuna_search.py", "OptunaSearch", "optuna"),
    "hyperopt": _Class("search/hyperopt/hyperopt_search.py", "HyperOptSearch", "hyperopt"),
}
_GIVEN_ELSEWHERE = {
    "metric": "tune_config.metric",
    "mode": "tune_config.mode",
    "max_concurrent": "max_concurrent_trials",
}
_OWN_CODE = ("advantage_estimator", "engine", "policy_loss")
"""Options whose objects may add keys to results."""
_OBJECTS = ("custom_explore_fn", "space", "sampler", "storage", "evaluated_rewards")


class TuneOptions(BaseModel):
    """`tune_config` of an experiment; names and meaning are those of `ray.tune.TuneConfig`."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
    num_samples: Annotated[int, Field(gt=0, le=MOST_TRIALS)] | None = None
    """Number of draws of the random values, each at every grid point."""
    metric: str | None = None
    """Result key that schedulers and searchers compare; None: the held-out accuracy, or without evaluations the mean return."""
    mode: Literal["min", "max"] = "max"
    scheduler: str | dict[str, Any] = "fifo"
    search_alg: str | dict[str, Any] = "random"
    max_concurrent_trials: PositiveInt | None = None
    """Most trials at a time; None: as many as the machine has room for."""
    time_budget_s: PositiveFloat | PositiveInt | None = None
    """Wall-clock after which the whole sweep stops, seconds."""


def name_and_arguments(value: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Splits `asha` or `{type: asha, max_t: 9}` into name and arguments."""
    if isinstance(value, str):
        return value, {}
    return str(value.get("type")), {key: argument for key, argument in value.items() if key != "type"}


def has_own_code(options: Mapping[str, Any]) -> bool:
    """Whether the options name code of the user's that may add keys to results."""
    parts = (options.get(key) for key in _OWN_CODE)
    names = (part.get("type") if isinstance(part, Mapping) else part for part in parts)
    return any(key.startswith("callbacks") for key in options) or any(":" in str(name) for name in names)


def compared_metric(tune_config: TuneOptions, options: Mapping[str, Any]) -> str:
    """Returns the result key that schedulers and searchers compare."""
    evaluated = options.get("evaluation_interval") is not None
    return tune_config.metric or (HELDOUT_ACCURACY if evaluated else MEAN_RETURN)


def mutation_axes(tune_config: TuneOptions) -> list[Axis]:
    """Returns the options that PBT may change, as axes; a bare list is a `choice`. Empty without PBT."""
    name, arguments = name_and_arguments(tune_config.scheduler)
    if name != "pbt":
        return []
    mutations = arguments.get("hyperparam_mutations", {})
    return list(
        axes({key: {"choice": value} if isinstance(value, list) else value for key, value in mutations.items()})
    )


def asha_horizon(tune_config: TuneOptions, stop: Mapping[str, float]) -> float | None:
    """Returns ASHA's `max_t`: as given, else the experiment's limit on the same key; None if there is neither."""
    _, arguments = name_and_arguments(tune_config.scheduler)
    given = arguments.get("max_t", stop.get(str(arguments.get("time_attr", "training_iteration"))))
    return None if given is None else float(given)


def check_tune_options(
    tune_config: TuneOptions,
    options: Mapping[str, Any],
    *,
    stop: Mapping[str, float],
    num_to_keep: int | None,
    num_trials: int,
    where: str,
) -> None:
    """Checks a sweep's scheduler, searcher and metric.

    Args:
        tune_config: The experiment's `tune_config`.
        options: The experiment's options, with search words as they are written.
        stop: The experiment's limits by key.
        num_to_keep: Number of checkpoints that a trial keeps; None: all.
        num_trials: Number of trials at the start.
        where: Name of `tune_config` in messages.

    Raises:
        OptionError: an unknown name or argument, or a combination that does not work.
    """
    if num_trials > MOST_TRIALS:
        raise OptionError(
            f"{where}={tune_config.model_dump(exclude_defaults=True)!r}: the experiment has {num_trials:,} trials (grid points x seeds x "
            f"num_samples); at most {MOST_TRIALS:,}: take some out"
        )
    scheduler, arguments = _check_class(f"{where}.scheduler", tune_config.scheduler, SCHEDULERS)
    searcher, search_arguments = _check_class(f"{where}.search_alg", tune_config.search_alg, SEARCHERS)
    _check_metric(f"{where}.metric", tune_config.metric, options)
    _check_searcher(f"{where}.search_alg", searcher, options)
    if searcher == "random" and search_arguments.get("points_to_evaluate"):
        raise OptionError(
            f"{where}.search_alg.points_to_evaluate={search_arguments['points_to_evaluate']!r}: values that stand in no "
            "range would not be checked; give them as a grid_search"
        )
    most = arguments.get("max_t")
    if most is not None and (isinstance(most, bool) or not isinstance(most, int | float) or not 0 < most < math.inf):
        raise OptionError(
            f"{where}.scheduler.max_t={most!r}: must be a number above 0, in units of time_attr; correct it"
        )
    if scheduler == "asha" and asha_horizon(tune_config, stop) is None:
        raise OptionError(
            f"{where}.scheduler.max_t=None: how far a trial runs at most is not given in units of "
            f"time_attr={arguments.get('time_attr', 'training_iteration')!r}; give max_t, or a limit on that key in stop"
        )
    if scheduler == "pbt":
        _check_pbt(f"{where}.scheduler", tune_config, searcher, options, num_to_keep, num_trials)


def _check_class(
    key: str, value: str | Mapping[str, Any], known: Mapping[str, _Class | None]
) -> tuple[str, dict[str, Any]]:
    if isinstance(value, Mapping) and "type" not in value:
        raise OptionError(f"{key}={value!r}: has no type; give one of {', '.join(known)}")
    name, arguments = name_and_arguments(value)
    if name not in known:
        raise OptionError(unknown_value(key, name, known))
    tune_class = known[name]
    allowed: frozenset[str] = frozenset()
    if tune_class is not None:
        allowed = constructor_arguments(f"tune/{tune_class.file}", tune_class.name)
        if tune_class.needs is not None and importlib.util.find_spec(tune_class.needs) is None:
            raise OptionError(
                f"{key}={name!r}: the package {tune_class.needs!r} is not installed; install it, or use 'random'"
            )
    for argument, given in arguments.items():
        if argument in _GIVEN_ELSEWHERE:
            raise OptionError(
                f"{key}.{argument}={given!r}: is {_GIVEN_ELSEWHERE[argument]} of the sweep; give it there"
            )
        if argument in _OBJECTS or argument not in allowed:
            words = sorted(f"{key}.{word}" for word in allowed - set(_OBJECTS) - set(_GIVEN_ELSEWHERE))
            if not words:
                raise OptionError(f"{key}.{argument}={given!r}: {name} takes no arguments; remove it")
            takes = ", ".join(word.removeprefix(f"{key}.") for word in words)
            message = unknown_key(f"{key}.{argument}", given, words).partition("; ")[0]
            raise OptionError(f"{message}; {name} takes {takes}")
    return name, arguments


def _check_metric(key: str, metric: str | None, options: Mapping[str, Any]) -> None:
    if metric is None:
        return
    check_spelling(key, metric, metric, may_be_new=has_own_code(options))
    if metric in HELDOUT_KEYS and options.get("evaluation_interval") is None:
        raise OptionError(
            f"{key}={metric!r}: with evaluation_interval=None nothing is evaluated; set evaluation_interval, or metric to "
            f"{MEAN_RETURN!r}"
        )


def _check_searcher(key: str, searcher: str, options: Mapping[str, Any]) -> None:
    if searcher == "random":
        return
    found = list(axes(options))
    for axis in found:
        if axis.is_grid:
            raise OptionError(
                f"{key}={searcher!r}: it chooses values by what earlier trials gave, and {axis.key}.{axis.word} leaves it no "
                f"choice (seeds are a grid as well); make it a choice, or set {key} to 'random'"
            )
    if not found:
        raise OptionError(
            f"{key}={searcher!r}: no option has a range to search; give one, such as lr: {{loguniform: […]}}"
        )


def _check_pbt(
    key: str,
    tune_config: TuneOptions,
    searcher: str,
    options: Mapping[str, Any],
    num_to_keep: int | None,
    num_trials: int,
) -> None:
    _, arguments = name_and_arguments(tune_config.scheduler)
    mutations = arguments.get("hyperparam_mutations")
    if not isinstance(mutations, Mapping) or not mutations:
        raise OptionError(
            f"{key}.hyperparam_mutations={mutations!r}: what may be perturbed is not given; name options with their ranges, "
            "such as {lr: {loguniform: [1e-5, 1e-3]}}"
        )
    for option, values in mutations.items():
        if option not in PERTURBABLE:
            raise OptionError(
                f"{key}.hyperparam_mutations.{option}={values!r}: cannot change when a trial goes on from another's "
                f"checkpoint; these can: {', '.join(sorted(PERTURBABLE))}"
            )
        if isinstance(options.get(option), list):
            raise OptionError(
                f"{key}.hyperparam_mutations.{option}={values!r}: multiplies a number, and {option}={options[option]!r} is a "
                f"schedule; make {option} a number, or leave it out here"
            )
        if not isinstance(values, list) and not list(axes({option: values})):
            raise OptionError(
                f"{key}.hyperparam_mutations.{option}={values!r}: must be a list of values or one of the search words "
                f"{', '.join(WORDS[1:])}"
            )
    for axis in mutation_axes(tune_config):
        if axis.is_grid:
            raise OptionError(f"{key}.hyperparam_mutations.{axis.key}.grid_search: values are drawn; give a plain list")
        check_axis(axis)
    if searcher != "random":
        raise OptionError(f"{key}='pbt': chooses values itself; set search_alg to 'random'")
    if num_trials < 2:
        raise OptionError(f"{key}='pbt': a population of {num_trials} has no better half; set num_samples to 2 or more")
    if num_to_keep is not None and num_to_keep < LEAST_PBT_CHECKPOINTS:
        raise OptionError(
            f"checkpoint_config.num_to_keep={num_to_keep}: with pbt a trial goes on from another's checkpoint when its turn "
            f"comes, which must not have been removed by then; set it to {LEAST_PBT_CHECKPOINTS} or more, or leave it out"
        )
