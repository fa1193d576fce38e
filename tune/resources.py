"""What a trial needs of the machine, and whether it will ever get it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from rich.table import Table

from tppo_rl.algorithms.rllib_internals import num_cpus_found
from tppo_rl.config.run_files import Experiment
from tppo_rl.core.errors import OptionError

_COUNTS = {
    "num_env_runners": ("num_cpus_per_env_runner", "num_gpus_per_env_runner"),
    "num_learners": ("num_cpus_per_learner", "num_gpus_per_learner"),
    "evaluation_num_env_runners": ("num_cpus_per_env_runner", "num_gpus_per_env_runner"),
}
"""Options that multiply what a trial needs, with what each one of them takes."""


class TrialNeeds(NamedTuple):
    """Resources of one trial."""

    total: dict[str, float]
    """By Ray's name of the resource."""
    bundles: list[dict[str, float]]
    """Of each process, the main one first; each must find room on one machine."""
    options: dict[str, Any]
    """Those of the trial."""


def needs_of(trainable: Any, options: Mapping[str, Any]) -> TrialNeeds:
    """What a trial with these options asks Ray for.

    Raises:
        OptionError: options that RLlib's own checks refuse.
    """
    try:
        request = trainable.default_resource_request(dict(options))
    except OptionError:
        raise
    except (ValueError, TypeError) as error:
        raise OptionError(f"options={dict(options)!r}: RLlib refuses them: {error}") from None
    bundles = [{name: float(amount) for name, amount in bundle.items() if amount} for bundle in request.bundles]
    total = {name: float(amount) for name, amount in request.required_resources.items() if amount}
    return TrialNeeds(total, bundles, dict(options))


def machine(runtime_env: Mapping[str, Any] | None = None) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Resources of all machines together and of each: of the cluster if Ray runs or is to be joined, else of this one.

    Nothing is started on this machine.

    Args:
        runtime_env: Of the actors of a cluster that is joined.
    """
    if not ray.is_initialized() and not os.environ.get("RAY_ADDRESS"):
        import torch

        here = {"CPU": float(num_cpus_found()), "GPU": float(torch.cuda.device_count())}
        return here, [here]
    if not ray.is_initialized():
        from tppo_rl.algorithms.ray_start import start_ray

        start_ray(runtime_env)
    return dict(ray.cluster_resources()), [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def check_fit(experiment: Experiment, trainable: Any) -> Table:
    """Checks that every trial of a sweep fits the machine when it is alone on it.

    Args:
        experiment: Checked.
        trainable: Its algorithm class.

    Returns:
        A table of what a trial needs, what there is, and how many run at a time.

    Raises:
        OptionError: a trial would wait for ever.
    """
    from tppo_rl.config.search_space import points_to_check

    all_needs = {}
    for point in points_to_check(experiment.options()):
        needs = needs_of(trainable, point)
        all_needs[repr(sorted(needs.total.items()))] = needs
    total, nodes = machine(experiment.options().get("runtime_env"))
    for needs in all_needs.values():
        _refuse_if_too_much(needs, total, nodes)
    largest = max(all_needs.values(), key=lambda needs: sum(needs.total.values()))
    return needs_table(experiment, largest, total)


def needs_table(experiment: Experiment, needs: TrialNeeds, total: Mapping[str, float]) -> Table:
    """What the largest trial of a sweep needs and how many run at a time."""
    at_a_time = min(int(total.get(name, 0) // amount) for name, amount in needs.total.items()) if needs.total else 1
    limit = experiment.tune_config.max_concurrent_trials
    at_a_time = max(1, min(at_a_time, experiment.num_trials, limit or at_a_time))
    table = Table(title=f"{experiment.name}: trials", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_row("trials", str(experiment.num_trials))
    table.add_row("a trial needs", _words(needs.total))
    table.add_row("  its processes", " + ".join(map(_words, filter(None, needs.bundles))))
    table.add_row("there are", _words({name: total.get(name, 0.0) for name in needs.total}))
    table.add_row("at a time", str(at_a_time))
    return table


def _refuse_if_too_much(needs: TrialNeeds, total: Mapping[str, float], nodes: list[dict[str, float]]) -> None:
    for name, amount in needs.total.items():
        if amount > total.get(name, 0.0):
            there = f"there are {total.get(name, 0.0):g}"
            raise OptionError(
                f"{_largest_part(needs, name)}: a trial needs {amount:g} {name}, {there}, {_remedy(name)}"
            )
    for bundle in needs.bundles:
        if not any(all(node.get(name, 0.0) >= amount for name, amount in bundle.items()) for node in nodes):
            name = next(iter(bundle))
            raise OptionError(
                f"{_largest_part(needs, name)}: a process of a trial needs {_words(bundle)}, which no machine of the cluster "
                f"has, {_remedy(name)}"
            )


def _remedy(name: str) -> str:
    lower = f"num_{name.lower()}s_per_env_runner and num_{name.lower()}s_per_learner"
    return f"so it would wait for ever; lower it, num_env_runners, num_learners or {lower}, or use a larger machine"


def _largest_part(needs: TrialNeeds, name: str) -> str:
    """The option that asks for the most of a resource, with its value."""
    column = 1 if name == "GPU" else 0
    parts: dict[str, float] = {}
    for count_key, per_keys in _COUNTS.items():
        per_key = per_keys[column]
        each = needs.options.get(per_key, 1 - column)
        each = (1 - column) if isinstance(each, str) else each
        count = needs.options.get(count_key, 1 if count_key == "num_env_runners" else 0)
        at_least = max(1, count) if count_key != "evaluation_num_env_runners" else count
        parts[per_key if each > at_least else count_key] = max(at_least * each, parts.get(count_key, 0.0))
    key = max(parts, key=lambda part: (part in needs.options, parts[part]))
    return f"{key}={needs.options.get(key)!r}"


def _words(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in resources.items()) or "nothing"
