if __name__ != "tppo_rl.algorithms":
    raise ImportError("import this package as 'tppo_rl.algorithms'")

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tppo_rl.algorithms.tppo_config import TPPOConfig as TPPOConfig


def algorithm_class(name: str) -> Any:
    """The algorithm class of a name in a run file. Imports Ray."""
    from tppo_rl.algorithms.tppo import TPPO

    return {"TPPO": TPPO}[name]


def __getattr__(name: str) -> Any:
    if name == "TPPOConfig":
        from tppo_rl.algorithms.tppo_config import TPPOConfig

        return TPPOConfig
    if name == "TPPO":
        return algorithm_class(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
