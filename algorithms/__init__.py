if __name__ != "tppo_rl.algorithms":
    raise ImportError("import this package as 'tppo_rl.algorithms'")

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tppo_rl.algorithms.tppo_config import TPPOConfig as TPPOConfig


def algorithm_class(name: str) -> Any:
    """The algorithm class of a name in a run file. Imports Ray."""
    from tppo_rl.algorithms.tppo import TPPO

    return {"TPPO": TPPO}[name]


def register_algorithms() -> None:
    """Makes the algorithms known to Tune by name."""
    from ray.tune.registry import register_trainable

    from tppo_rl.run_files import ALGORITHMS

    for name in ALGORITHMS:
        register_trainable(name, algorithm_class(name))


def __getattr__(name: str) -> Any:
    if name == "TPPOConfig":
        from tppo_rl.algorithms.tppo_config import TPPOConfig

        return TPPOConfig
    if name == "TPPO":
        return algorithm_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
