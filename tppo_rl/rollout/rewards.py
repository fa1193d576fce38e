"""What a training response is worth: the environment's rewards or its verdict, and a penalty for length.

Overlong shaping (DAPO, arXiv 2503.14476, eq. 13), for a response of n tokens under a cap L with a buffer of b tokens:

    0                  n <= L - b
    (L - b - n) / b    L - b < n <= L
    -1                 n > L

Evaluation scores responses without any of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

RewardSource = Literal["environment", "zero_one", "plus_minus_one"]


def overlong_penalty(length: int, *, cap: int, buffer: int) -> float:
    """Returns the penalty of the module's equation, between -1 and 0.

    Args:
        length: n, tokens of the response.
        cap: L, tokens.
        buffer: b, tokens, at least 1.
    """
    return max(-1.0, min(0.0, (cap - buffer - length) / buffer))


@dataclass(frozen=True)
class RewardShaping:
    """How rewards of the training split are made."""

    source: RewardSource = "environment"
    """The environment's rewards, or only its verdict at the episode's end: 1 or 0, 1 or -1."""
    max_response_length: int = 0
    """Cap of the responses, tokens."""
    overlong_buffer: int = 0
    """Last tokens under the cap over which the penalty grows; 0 is without one."""

    def of_turn(self, reward: float) -> float:
        """Reward of a turn, given the environment's."""
        return reward if self.source == "environment" else 0.0

    def of_episode(self, *, correct: bool, response_length: int) -> float:
        """What the end of the episode adds to its last turn's reward."""
        verdict = {"environment": 0.0, "zero_one": float(correct), "plus_minus_one": 1.0 if correct else -1.0}
        penalty = 0.0
        if self.overlong_buffer:
            penalty = overlong_penalty(response_length, cap=self.max_response_length, buffer=self.overlong_buffer)
        return verdict[self.source] + penalty
