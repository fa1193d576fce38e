"""What an algorithm is, as data: its file in `tppo_rl.algorithms` holds one `AlgorithmSpec` and the reasons for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

_WHOLE_RESPONSES = {"mode": "sync", "window_length": None}
_WHOLE_RESPONSES_REASONS = {
    "mode": "it waits for whole responses before it updates; for windows or async sampling use run: TPPO",
    "window_length": "it trains whole responses; for windows use run: TPPO",
}


@dataclass(frozen=True)
class AlgorithmSpec:
    """The options that make an algorithm what it is. In a run file it is named by `run`, or by `run: module:SPEC`."""

    name: str
    """Of its classes: `name` and `nameConfig`."""
    title: str
    """What the name stands for."""
    paper: str
    """Where it was published, such as "arXiv 2506.15050"."""
    batches: Literal["windows", "whole_responses"] = "windows"
    """What an update is made of: fragments of `window_length` tokens, or one whole response of every slot (sync)."""
    advantages: str = "egae"
    """Default of `advantage_estimator`."""
    policy_loss: str = "clipped"
    """Default of `policy_loss`."""
    critic: str | None = "separate"
    """Default of `critic`; None: it has none."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Further options that differ from T-PPO's. Values that belong to a size of model or batch are to be changed."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Options that may not be changed, for it would be another algorithm; each with the reason and what to use instead."""

    @property
    def options(self) -> dict[str, Any]:
        """All options that differ from T-PPO's."""
        batches = _WHOLE_RESPONSES if self.batches == "whole_responses" else {}
        parts = {"advantage_estimator": self.advantages, "policy_loss": self.policy_loss, "critic": self.critic}
        return {**batches, **parts, **self.defaults}

    @property
    def reasons(self) -> dict[str, str]:
        """Why options may not be changed, by option."""
        batches = _WHOLE_RESPONSES_REASONS if self.batches == "whole_responses" else {}
        return {**batches, **self.fixed}
