if __name__ != "tppo_rl.algorithms":
    raise ImportError("import this package as 'tppo_rl.algorithms'")

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tppo_rl.algorithms.dapo import DAPO as DAPO
    from tppo_rl.algorithms.dapo import DAPOConfig as DAPOConfig
    from tppo_rl.algorithms.grpo import GRPO as GRPO
    from tppo_rl.algorithms.grpo import GRPOConfig as GRPOConfig
    from tppo_rl.algorithms.ppo import PPO as PPO
    from tppo_rl.algorithms.ppo import PPOConfig as PPOConfig
    from tppo_rl.algorithms.tppo import TPPO as TPPO
    from tppo_rl.algorithms.tppo_config import TPPOConfig as TPPOConfig
    from tppo_rl.algorithms.vapo import VAPO as VAPO
    from tppo_rl.algorithms.vapo import VAPOConfig as VAPOConfig

ALGORITHMS = ("TPPO", "PPO", "VAPO", "GRPO", "DAPO")
"""Names of the algorithms in run files; each has a class of that name, and one with `Config` behind it."""


def algorithm_class(name: str) -> Any:
    """The algorithm class of a name in a run file. Imports Ray."""
    return getattr(import_module(f"tppo_rl.algorithms.{name.lower()}"), name)


def __getattr__(name: str) -> Any:
    algorithm = name.removesuffix("Config")
    if algorithm not in ALGORITHMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "TPPOConfig":
        return import_module("tppo_rl.algorithms.tppo_config").TPPOConfig
    return getattr(import_module(f"tppo_rl.algorithms.{algorithm.lower()}"), name)
