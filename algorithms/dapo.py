"""DAPO (arXiv 2503.14476): GRPO with a higher upper clip, a token mean, no KL, and two parts more.

    groups whose responses are all right or all wrong are replaced by others before the update (`tppo_rl.rollout.groups`)
    a penalty grows over the last tokens under the response cap (`tppo_rl.rollout.rewards`)

All of it is the preset `DAPO` of `tppo_rl.config.presets`.
"""

from __future__ import annotations

from typing import ClassVar

from ray.tune.registry import register_trainable

from tppo_rl.algorithms.grpo import GRPO, GRPOConfig


class DAPOConfig(GRPOConfig):
    """Configuration of DAPO."""

    algorithm: ClassVar[str] = "DAPO"


class DAPO(GRPO):
    """DAPO, see the head of this file."""

    @classmethod
    def get_default_config(cls) -> DAPOConfig:
        return DAPOConfig()


register_trainable("DAPO", DAPO)
