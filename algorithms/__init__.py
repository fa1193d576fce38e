if __name__ != "tppo_rl.algorithms":
    raise ImportError("import this package as 'tppo_rl.algorithms'")

from typing import TYPE_CHECKING, Any

from tppo_rl.core.registry import ALGORITHMS

if TYPE_CHECKING:
    from tppo_rl.algorithms.language_model_algorithm import LanguageModelAlgorithm
    from tppo_rl.algorithms.rllib_config import LanguageModelConfig

    class TPPO(LanguageModelAlgorithm): ...

    class TPPOConfig(LanguageModelConfig): ...

    class PPO(LanguageModelAlgorithm): ...

    class PPOConfig(LanguageModelConfig): ...

    class VAPO(LanguageModelAlgorithm): ...

    class VAPOConfig(LanguageModelConfig): ...

    class GRPO(LanguageModelAlgorithm): ...

    class GRPOConfig(LanguageModelConfig): ...

    class DAPO(LanguageModelAlgorithm): ...

    class DAPOConfig(LanguageModelConfig): ...

    class GSPO(LanguageModelAlgorithm): ...

    class GSPOConfig(LanguageModelConfig): ...

    class CISPO(LanguageModelAlgorithm): ...

    class CISPOConfig(LanguageModelConfig): ...


def __getattr__(name: str) -> Any:
    """The classes of every algorithm, `NAME` and `NAMEConfig`. Imports Ray when one is asked for."""
    algorithm = name.removesuffix("Config")
    if algorithm not in ALGORITHMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tppo_rl.algorithms.rllib_classes import rllib_classes

    classes = rllib_classes(ALGORITHMS.find(algorithm))
    return classes[1] if name.endswith("Config") else classes[0]
