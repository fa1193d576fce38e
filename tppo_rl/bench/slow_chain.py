"""An environment whose answers take time, for `tppo-rl bench rollout --verifier-seconds`: a verifier that waits for a server."""

from __future__ import annotations

import time
from typing import Any

import gymnasium

from tppo_rl.envs.arithmetic_chain import ArithmeticChain

ENV = f"{__name__}:tppo_rl/SlowChain-v0"
"""The option `env`."""


class SlowChain(ArithmeticChain):
    """Arithmetic chains with answers that take some seconds each."""

    def __init__(self, *, seconds: float = 0.0, **settings: Any) -> None:
        super().__init__(**settings)
        self._seconds = seconds

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        return super().step(action)


if "tppo_rl/SlowChain-v0" not in gymnasium.registry:
    gymnasium.register("tppo_rl/SlowChain-v0", entry_point=SlowChain)
