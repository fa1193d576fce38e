if __name__ != "tppo_rl.envs":
    raise ImportError("import this package as 'tppo_rl.envs'")

import gymnasium

from tppo_rl.envs.text_env import Problem, Reply, TextEnv

__all__ = ["ENTRY_POINTS", "Problem", "Reply", "TextEnv", "register_envs"]

ENTRY_POINTS: dict[str, str] = {
    "tppo_rl/ArithmeticChain-v0": "tppo_rl.envs.arithmetic_chain:ArithmeticChain",
    "tppo_rl/Calculator-v0": "tppo_rl.envs.calculator:Calculator",
    "tppo_rl/Dataset-v0": "tppo_rl.envs.dataset:Dataset",
    "tppo_rl/GuessNumber-v0": "tppo_rl.envs.guess_number:GuessNumber",
    "tppo_rl/OpenEnv-v0": "tppo_rl.envs.openenv_environment:OpenEnv",
    "tppo_rl/ReasoningGym-v0": "tppo_rl.envs.reasoning_gym:ReasoningGym",
    "tppo_rl/TRLEnvironment-v0": "tppo_rl.envs.trl_environment:TRLEnvironment",
    "tppo_rl/Verifiers-v0": "tppo_rl.envs.verifiers_environment:Verifiers",
}
"""Gymnasium id of every environment of this package, and the class that it names."""


def register_envs() -> None:
    """Register the environments with Gymnasium; a second call changes nothing."""
    for env_id, entry_point in ENTRY_POINTS.items():
        if env_id not in gymnasium.registry:
            gymnasium.register(id=env_id, entry_point=entry_point)


register_envs()
