"""GRPO (arXiv 2402.03300): responses to one prompt are compared with one another; there is no critic.

    A_i  = (R_i - mean(R)) / std(R)                               over the group, the same on every token of response i
    loss = mean over responses of the mean over tokens of (clipped surrogate + 0.04 * k3(reference, policy))

All of it is the preset `GRPO` of `tppo_rl.config.presets`. No critic is built, on learners or elsewhere.
"""

from __future__ import annotations

from typing import ClassVar

from ray.tune.registry import register_trainable

from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.algorithms.tppo_config import TPPOConfig


class GRPOConfig(TPPOConfig):
    """Configuration of GRPO."""

    algorithm: ClassVar[str] = "GRPO"


class GRPO(TPPO):
    """GRPO, see the head of this file."""

    @classmethod
    def get_default_config(cls) -> GRPOConfig:
        return GRPOConfig()


register_trainable("GRPO", GRPO)
