"""tppo_rl: asynchronous reinforcement learning of reasoning models with Truncated PPO.

    from tppo_rl import TPPOConfig

imports the builder of an algorithm. Ray is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from tppo_rl.algorithms import CISPO as CISPO
    from tppo_rl.algorithms import DAPO as DAPO
    from tppo_rl.algorithms import GRPO as GRPO
    from tppo_rl.algorithms import GSPO as GSPO
    from tppo_rl.algorithms import PPO as PPO
    from tppo_rl.algorithms import TPPO as TPPO
    from tppo_rl.algorithms import VAPO as VAPO
    from tppo_rl.algorithms import CISPOConfig as CISPOConfig
    from tppo_rl.algorithms import DAPOConfig as DAPOConfig
    from tppo_rl.algorithms import GRPOConfig as GRPOConfig
    from tppo_rl.algorithms import GSPOConfig as GSPOConfig
    from tppo_rl.algorithms import PPOConfig as PPOConfig
    from tppo_rl.algorithms import TPPOConfig as TPPOConfig
    from tppo_rl.algorithms import VAPOConfig as VAPOConfig


def __getattr__(name: str) -> Any:
    # Python also asks for other names, such as those of submodules that are not imported yet.
    if name.removesuffix("Config").isupper():
        from tppo_rl import algorithms

        return getattr(algorithms, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
