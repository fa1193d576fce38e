"""How long the policy waits for its critic (VC-PPO, arXiv 2503.01491, section 3.1: value pretraining), counted in what the critic has seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tppo_rl.config.options import Options

ERRORS = 3.0
"""Standard errors that the slope must stand above the one wanted: it is looked at after every update, and chance has many tries."""


class CriticWarmup:
    """Counts the finished responses that the critic has learned from, and says when it may teach the policy.

    Args:
        options: Of the run.
        state: Where an earlier warm-up was (`state`); None: this one begins.
    """

    def __init__(self, options: Options, state: Mapping[str, Any] | None = None) -> None:
        state = state or {}
        self._updates = options.critic.critic_warmup_updates
        self._responses = options.critic.critic_warmup_responses
        self._slope = options.critic.critic_warmup_slope
        self._finished = int(state.get("finished", 0))
        self._over = bool(state.get("over", False))

    @property
    def ends_by_slope(self) -> bool:
        """Whether what is known of the critic's differences may end it early."""
        return self._slope is not None

    def is_frozen(self, version: int) -> bool:
        """Whether the policy is frozen in the update that begins with this version."""
        ended = self._finished >= self._responses or (self._over and self._slope is not None)
        return version < self._updates or not ended

    @property
    def responses(self) -> int | None:
        """Finished responses that the critic has learned from; None: its length does not depend on them."""
        return self._finished if self._responses else None

    def add(self, finished: int, least_slope: float | None) -> None:
        """Is told what an update has taught.

        Args:
            finished: Responses that ended in it, and whose returns the critic regresses.
            least_slope: With which the critic's differences predict later returns, less `ERRORS` standard errors; None: not known yet.
        """
        self._finished += finished
        if self._slope is not None and least_slope is not None and least_slope >= self._slope:
            self._over = True

    def state(self) -> dict[str, Any]:
        """Returns where it is, as JSON."""
        return {"finished": self._finished, "over": self._over}
