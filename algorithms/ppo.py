"""PPO on whole responses (arXiv 1707.06347): what T-PPO is compared with.

Every slot generates one whole response, the step waits for the longest, advantages are plain GAE. Everything else is
T-PPO's, so that a comparison shows what windows do; the differences are the preset `PPO` of `tppo_rl.config.presets`. Tune knows
RLlib's algorithm by the name "PPO", so this one is given to it as a class.
"""

from __future__ import annotations

from typing import ClassVar

from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.algorithms.tppo_config import TPPOConfig


class PPOConfig(TPPOConfig):
    """Configuration of PPO."""

    algorithm: ClassVar[str] = "PPO"


class PPO(TPPO):
    """PPO, see the head of this file."""

    @classmethod
    def get_default_config(cls) -> PPOConfig:
        return PPOConfig()
