"""RLlib's classes of an algorithm, made when they are first asked for: the specs alone need no Ray."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tppo_rl.core.algorithm_spec import AlgorithmSpec


def lazy_classes(spec: AlgorithmSpec) -> Callable[[str], Any]:
    """A module's `__getattr__` that gives the classes `NAME` and `NAMEConfig` of its algorithm. Imports Ray when it does."""

    def find(name: str) -> Any:
        if name not in (spec.name, f"{spec.name}Config"):
            raise AttributeError(f"the module of {spec.name} has no attribute {name!r}")
        from tppo_rl.algorithms.rllib_classes import rllib_classes

        algorithm, config = rllib_classes(spec)
        return algorithm if name == spec.name else config

    return find
