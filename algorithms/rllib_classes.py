"""RLlib's classes of each algorithm, made from its spec."""

from __future__ import annotations

from ray.rllib.algorithms.registry import ALGORITHMS as RLLIB_ALGORITHMS
from ray.tune.registry import register_trainable

from tppo_rl.algorithms.language_model_algorithm import LanguageModelAlgorithm
from tppo_rl.algorithms.rllib_config import LanguageModelConfig
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.registry import ALGORITHMS

_Classes = tuple[type[LanguageModelAlgorithm], type[LanguageModelConfig]]
_being_registered: set[str] = set()
_made: dict[str, tuple[AlgorithmSpec, _Classes]] = {}


def rllib_classes(spec: AlgorithmSpec) -> _Classes:
    """RLlib's classes of an algorithm, `NAME` and `NAMEConfig`; the same ones for every call.

    Those of our own specs are found again by their module. Tune knows the algorithm by its name, unless RLlib has one of that
    name.
    """
    made = _made.get(spec.name)
    if made is None or made[0] != spec:
        made = _made[spec.name] = spec, _make_classes(spec)
    algorithm, config = made[1]
    _register(spec.name, algorithm)
    return algorithm, config


def _register(name: str, algorithm: type[LanguageModelAlgorithm]) -> None:
    """Tells Tune the name. Every time: a Ray session's names are forgotten with it."""
    # To register a class is to pickle it, which asks its module for it, and so comes here again.
    if name in RLLIB_ALGORITHMS or name in _being_registered:
        return
    _being_registered.add(name)
    try:
        register_trainable(name, algorithm)
    finally:
        _being_registered.discard(name)


def _make_classes(spec: AlgorithmSpec) -> _Classes:
    module = ALGORITHMS[spec.name].partition(":")[0] if spec.name in ALGORITHMS else __name__
    config = type(
        f"{spec.name}Config",
        (LanguageModelConfig,),
        {"__module__": module, "__doc__": f"Configuration of {spec.title}.", "spec": spec},
    )
    algorithm = type(
        spec.name,
        (LanguageModelAlgorithm,),
        {
            "__module__": module,
            "__doc__": f"{spec.title} ({spec.paper}).",
            "get_default_config": classmethod(lambda cls: config()),
        },
    )
    return algorithm, config
