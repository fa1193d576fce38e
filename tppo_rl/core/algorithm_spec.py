"""An algorithm as data: its file in `tppo_rl.algorithms` holds one `AlgorithmSpec` and the reasons for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_WHOLE_RESPONSES = {"mode": "sync", "window_length": None}
_WHOLE_RESPONSES_REASONS = {
    "window_length": "it trains whole responses; for windows use run: TPPO",
}


@dataclass(frozen=True)
class AlgorithmSpec:
    """The options that define an algorithm. A run file names it by `run: NAME`, or by `run: module:SPEC`."""

    name: str
    """Name of the algorithm; its classes are `name` and `nameConfig`."""
    title: str
    """The name in full."""
    paper: str
    """Its publication, such as "arXiv 2506.15050"."""
    batches: Literal["windows", "whole_responses"] = "windows"
    """Batch of an update: fragments of `window_length` tokens, or whole responses; by default one of every slot (sync)."""
    advantages: str = "egae"
    """Default of `advantage_estimator`."""
    policy_loss: str = "clipped"
    """Default of `policy_loss`."""
    critic: str | None = "separate"
    """Default of `critic`; None: no critic."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Further defaults that differ from T-PPO's. Users adapt those that depend on the size of model or batch."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Options that define the algorithm and may not be changed; each with the reason and what to use instead."""

    @property
    def options(self) -> dict[str, Any]:
        """All options that differ from T-PPO's."""
        batches = _WHOLE_RESPONSES if self.batches == "whole_responses" else {}
        parts = {"advantage_estimator": self.advantages, "policy_loss": self.policy_loss, "critic": self.critic}
        return {**batches, **parts, **self.defaults}

    @property
    def reasons(self) -> dict[str, str]:
        """Reasons why options may not be changed, by option."""
        batches = _WHOLE_RESPONSES_REASONS if self.batches == "whole_responses" else {}
        return {**batches, **self.fixed}
