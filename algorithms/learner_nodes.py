"""Room for learners, in a cluster on one node, taken before env-runners start, which would fill the node otherwise.

setup        waits for          unblocked by
learners     bundles of a node  Ray, or none has so much room: then of as few nodes as possible; `start_timeout_s`
env-runners  the bundles        the same; they get the other GPUs
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.util import get_current_placement_group
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from tppo_rl.core.errors import OptionError
from tppo_rl.core.waiting import stage

_logger = logging.getLogger(__name__)
_reserved: ContextVar[PlacementGroup | None] = ContextVar("bundles of learners", default=None)


@contextmanager
def room_for_learners(config: AlgorithmConfig) -> Iterator[PlacementGroup | None]:
    """Keeps room for the learners of a run with the placement `cluster`, until they are there.

    Learners that are built inside find it by `learner_bundles`, and give it back when they end.

    Args:
        config: Of the run; Ray is started.

    Raises:
        OptionError: no nodes gave the room in time.
    """
    if config.placement != "cluster" or _is_trial():
        yield None
        return
    bundles = reserve(config)
    token = _reserved.set(bundles)
    try:
        yield bundles
    except BaseException:
        remove_placement_group(bundles)
        raise
    finally:
        _reserved.reset(token)


def learner_bundles(config: AlgorithmConfig) -> PlacementGroup | None:
    """The room of the learners that are to be built now; None: Tune has made it, or they take none.

    Raises:
        OptionError: no nodes gave the room in time.
    """
    if not config.num_learners or not _bundle(config) or _is_trial():
        return None
    return _reserved.get() or _take(config, "PACK")


def reserve(config: AlgorithmConfig) -> PlacementGroup:
    """Takes room for all learners, on one node if one has it.

    Raises:
        OptionError: no nodes gave the room in `start_timeout_s`.
    """
    bundle, number = _bundle(config), config.num_learners
    fits_one = any(
        all(node["Resources"].get(name, 0) >= number * amount for name, amount in bundle.items())
        for node in ray.nodes()
        if node["Alive"]
    )
    if not fits_one:
        _logger.warning(
            "num_learners=%d: no node has room for all of them, so they are on several, which is slower", number
        )
    return _take(config, "STRICT_PACK" if fits_one else "PACK")


def _take(config: AlgorithmConfig, strategy: str) -> PlacementGroup:
    bundle, number, timeout_s = _bundle(config), config.num_learners, config.start_timeout_s
    bundles = placement_group([bundle] * number, strategy=strategy)
    there = False
    try:
        with stage("waiting for room for the learners"):
            there = bundles.wait(timeout_s)
    finally:
        # Ctrl-C may come.
        if not there:
            remove_placement_group(bundles)
    if not there:
        raise OptionError(
            f"num_learners={number}: Ray's nodes had no room for them, {bundle} each, for {timeout_s:g} s (start_timeout_s); end what "
            "else runs there, or give fewer"
        )
    return bundles


def _is_trial() -> bool:
    """Whether this process is a trial of Tune's, which has made room for all of it."""
    return get_current_placement_group() is not None


def _bundle(config: AlgorithmConfig) -> dict[str, float]:
    auto = config.num_cpus_per_learner == "auto"
    amounts = {
        "CPU": float(not config.num_gpus_per_learner) if auto else float(config.num_cpus_per_learner),
        "GPU": float(config.num_gpus_per_learner),
        **(config.custom_resources_per_learner or {}),
    }
    return {name: amount for name, amount in amounts.items() if amount}
