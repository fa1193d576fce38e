"""VAPO (arXiv 2504.05118): PPO with what makes a critic work on long answers.

    lambda = 1 - 1 / (alpha * l)      policy's GAE, for a response of l tokens; the critic regresses Monte-Carlo returns
    loss   = clipped surrogate (clip-higher, token mean) + 0.1 * (-log pi) on right responses

beside groups of responses and a critic that is warmed up while the policy is frozen: the preset `VAPO` of
`tppo_rl.config.presets`.
"""

from __future__ import annotations

from typing import ClassVar

from ray.tune.registry import register_trainable

from tppo_rl.algorithms.ppo import PPO, PPOConfig


class VAPOConfig(PPOConfig):
    """Configuration of VAPO."""

    algorithm: ClassVar[str] = "VAPO"


class VAPO(PPO):
    """VAPO, see the head of this file."""

    @classmethod
    def get_default_config(cls) -> VAPOConfig:
        return VAPOConfig()


register_trainable("VAPO", VAPO)
