"""From the words of a run file to Tune's objects: search spaces, schedulers, searchers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from ray import tune
from ray.tune.error import TuneError
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search import BasicVariantGenerator, create_searcher

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.config.run_files import Experiment
from tppo_rl.config.search_space import CHOICE, GRID, Axis, axes, put_all
from tppo_rl.config.sweep_options import asha_horizon, mutation_axes, name_and_arguments
from tppo_rl.core.errors import OptionError

_REFUSALS = (AssertionError, TypeError, ValueError, TuneError)


def param_space(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options with Tune's objects in place of the words of `tppo_rl.config.search_space`.

    They stand in the order of a config's own `to_dict`: Tune draws in the order of keys, and the same sweep in Python is to
    draw the same values.
    """
    order = {key: place for place, key in enumerate(TPPOConfig().to_dict())}
    in_order = sorted(options, key=lambda key: order.get(key.removesuffix("_"), len(order)))
    return put_all({key: options[key] for key in in_order}, {axis.path: _domain(axis) for axis in axes(options)})


def make_scheduler(experiment: Experiment) -> TrialScheduler:
    """The scheduler of an experiment's `tune_config`.

    Raises:
        OptionError: an argument that the scheduler refuses.
    """
    name, arguments = name_and_arguments(experiment.tune_config.scheduler)
    try:
        if name == "asha":
            horizon = asha_horizon(experiment.tune_config, experiment.stop)
            return AsyncHyperBandScheduler(**(arguments | {"max_t": horizon}))
        if name == "pbt":
            mutations = mutation_axes(experiment.tune_config)
            # An iteration in which no episode ended has no mean return to compare.
            arguments = {"require_attrs": False} | arguments
            arguments["hyperparam_mutations"] = {
                axis.key: list(axis.argument) if axis.word == CHOICE else _domain(axis) for axis in mutations
            }
            bounds = {axis.key: axis.bounds() for axis in mutations}
            return PopulationBasedTraining(**arguments, custom_explore_fn=partial(within_bounds, bounds))
    except _REFUSALS as error:
        raise OptionError(
            f"{experiment.name}.tune_config.scheduler={arguments!r}: {name} refuses it: {error}"
        ) from None
    return FIFOScheduler()


def make_searcher(experiment: Experiment) -> Any:
    """The searcher of an experiment's `tune_config`.

    Random values are the same at every start. With `seeds` they are drawn once for all seeds, so that seeds repeat a trial.

    Raises:
        OptionError: an argument that the searcher refuses.
    """
    name, arguments = name_and_arguments(experiment.tune_config.search_alg)
    try:
        if name == "random":
            repeats = {"constant_grid_search": experiment.seeds is not None, "random_state": 0}
            limit = experiment.tune_config.max_concurrent_trials or 0
            return BasicVariantGenerator(**(repeats | arguments), max_concurrent=limit)
        return create_searcher(name, **arguments)
    except (*_REFUSALS, ImportError) as error:
        raise OptionError(
            f"{experiment.name}.tune_config.search_alg={arguments!r}: {name} refuses it: {error}"
        ) from None


def within_bounds(bounds: Mapping[str, tuple[float, float] | None], config: dict[str, Any]) -> dict[str, Any]:
    """Brings options that PBT has multiplied back into the ranges that were checked."""
    limited = {
        key: min(max(config[key], limits[0]), limits[1])
        for key, limits in bounds.items()
        if limits is not None and math.isfinite(config[key])
    }
    return config | limited


def _domain(axis: Axis) -> Any:
    if axis.word == GRID:
        return tune.grid_search(axis.argument)
    sample = getattr(tune, axis.word)
    try:
        return sample(axis.argument) if axis.word == CHOICE else sample(*axis.argument)
    except _REFUSALS as error:
        raise OptionError(f"{axis.key}.{axis.word}={axis.argument!r}: {error}") from None
