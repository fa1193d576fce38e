"""The least config that hosts a `TPPOLearner` in RLlib."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from tppo_rl.config.options import OPTIONS, Options
from tppo_rl.learner.learner import TPPOLearner
from tppo_rl.learner.module import LanguageModelModule


class LearnerConfig(AlgorithmConfig):
    """The least config that a `TPPOLearner` runs with: it has `options`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        self.values: dict[str, Any] = {"lr": 1e-3, "critic_lr": 1e-3}

    @property
    def options(self) -> Options:
        of_rllib = ("num_learners", "num_cpus_per_learner", "num_gpus_per_learner")
        return Options.of(self.values | {key: getattr(self, key) for key in of_rllib})

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        return RLModuleSpec(module_class=LanguageModelModule)


def learner_config(
    folder: str,
    *,
    num_learners: int = 0,
    critic: str | None = "separate",
    lora: Any = None,
    of_module: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """Returns a config whose `build_learner_group()` hosts a `TPPOLearner` on the model in `folder`.

    `of_module`: more of the module's `model_config`.
    """
    text = gym.spaces.Text(max_length=64)
    config = (
        LearnerConfig()
        .environment(observation_space=text, action_space=text)
        .learners(learner_class=TPPOLearner, num_learners=num_learners, num_cpus_per_learner=1)
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=LanguageModelModule,
                model_config={"policy_model": folder, "critic": critic, "dtype": "float32", "lora": lora}
                | (of_module or {}),
            )
        )
    )
    for name, value in options.items():
        if name in OPTIONS:
            config.values[name] = value
        else:
            assert hasattr(config, name), name
            setattr(config, name, value)
    return config
