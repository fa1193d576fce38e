"""The GPUs that a placement is made for: stated ones, those of Ray's nodes, or those of this machine.

Ray is imported only where it is asked, so that a dry run need not wait for it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from tppo_rl.algorithms.ray_start import start_ray
from tppo_rl.config.checks import check_options
from tppo_rl.config.options import Options
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.errors import OptionError
from tppo_rl.core.gpus import CARDS, Gpus, gpus_here, parse_gpus
from tppo_rl.plan.placement import Placed, place

_TYPE = "accelerator_type:"
"""Beginning of the names under which Ray's nodes say which card they have."""


def placed(values: Mapping[str, Any], spec: AlgorithmSpec, *, join: bool) -> Placed | None:
    """Fills in what the placement sets, and checks it; None where there is none.

    Args:
        values: A user's options and settings of RLlib, by key.
        spec: The algorithm.
        join: Whether the cluster that `RAY_ADDRESS` names may be joined to look for GPUs.

    Raises:
        OptionError: no GPUs, a contradiction, or models that do not fit.
    """
    checked = check_options(values, spec, other_keys=values)
    if checked.placement.placement is None:
        return None
    given = {key: values[key] for key in checked.flat() if key in values}
    found = place(given, spec.options, found_gpus(checked, join=join))
    check_options(dict(values) | found.values, spec, other_keys=values)
    return found


def found_gpus(options: Options, *, join: bool) -> Gpus:
    """Returns the GPUs that a placement is made for.

    Args:
        options: Of the run, with a placement.
        join: See `placed`.

    Raises:
        OptionError: there are none, or it is not known which.
    """
    placement, stated = options.placement.placement, options.placement.gpus
    if stated is not None:
        return parse_gpus(stated)
    import ray

    if join and os.environ.get("RAY_ADDRESS"):
        start_ray(options.run.runtime_env)
    if ray.is_initialized():
        return _of_ray(str(placement))
    if os.environ.get("RAY_ADDRESS"):
        raise OptionError(
            f"placement={placement!r}: RAY_ADDRESS names a cluster, which is not joined now, so its GPUs are not known; state them, such as "
            "gpus: 2 x 8 x h100"
        )
    here = gpus_here()
    if here is None:
        raise OptionError(
            f"placement={placement!r}: this machine has no GPU (nvidia-smi finds none); leave placement out, or state the GPUs that the run "
            "will have, such as gpus: 8 x h100, to plan for them"
        )
    return here


def _of_ray(placement: str) -> Gpus:
    import ray

    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    counts = sorted((int(node.get("GPU", 0)) for node in nodes), reverse=True)
    numbers = tuple(count for count in counts if count)
    if not numbers:
        raise OptionError(
            f"placement={placement!r}: Ray has no GPU on any of its nodes; leave placement out, or start Ray with GPUs"
        )
    names = {name.removeprefix(_TYPE).lower() for node in nodes for name in node if name.startswith(_TYPE)}
    # Ray writes A100-80G where it can tell the two A100 apart.
    cards = {name.removesuffix("-80g") for name in names}
    if cards and cards <= CARDS.keys():
        return Gpus(numbers, int(min(CARDS[card] for card in cards)), "Ray's nodes")
    here = gpus_here()
    if here is None:
        card = f"of type {', '.join(sorted(names))}" if names else "of no known type"
        raise OptionError(
            f"placement={placement!r}: the memory of Ray's GPUs {card} is not known here; state them, such as gpus: "
            f"'{len(numbers)} x {numbers[0]} x 24 GiB'"
        )
    return Gpus(numbers, here.memory, "Ray's nodes, memory as on this machine")
