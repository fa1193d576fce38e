"""Ends a run whose responses cannot be scored, or are all left out, so that it does not go on for ever without a reward."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from tppo_rl.core.errors import RunError
from tppo_rl.rollout.responses import TRUNCATED, Failure, Scores

WATCHED = 256
"""Responses over which the fraction of failures is taken."""
_LEAST = 64
"""Responses before which nothing is judged."""


class RewardsFailed(RunError):
    """Too many responses could not be scored, or none could be trained."""


class FailureWatch:
    """Watches the responses that end.

    Args:
        max_failed_fraction: Fraction of failures in the last `WATCHED` responses above which the run ends.
        patience: Responses left out one after another, with nothing to train in between, after which the run ends.
    """

    def __init__(self, max_failed_fraction: float, patience: int = WATCHED) -> None:
        self._limit = max_failed_fraction
        self._patience = max(patience, WATCHED)
        self._failed: deque[bool] = deque(maxlen=WATCHED)
        self._left_out_in_a_row = 0
        self._last: Failure | None = None

    def clear(self) -> None:
        """Forgets what it saw."""
        self._failed.clear()
        self._left_out_in_a_row = 0

    def add(self, num_ended: int, num_trainable: int, scores: Scores) -> None:
        """Adds the responses that one result reports.

        Args:
            num_ended: Responses that ended.
            num_trainable: Windows, of these or other episodes, that can be trained.
            scores: What scoring gave for them.

        Raises:
            RewardsFailed: there were too many failures, or nothing can be trained.
        """
        self._failed.extend([True] * scores.failed_responses + [False] * (num_ended - scores.failed_responses))
        self._last = _last(scores.failures) or self._last
        failed = sum(self._failed)
        if len(self._failed) >= _LEAST and failed > self._limit * len(self._failed):
            raise RewardsFailed(
                f"max_failed_fraction={self._limit!r}: {failed} of the last {len(self._failed)} responses could not be scored; "
                f"the last failure: {self._described()}; correct what scores them; if they are wrong answers, set on_reward_failure to 'wrong' and max_failed_fraction to 1"
            )
        self._left_out_in_a_row = (
            0 if num_trainable else self._left_out_in_a_row + len(scores.left_out) + len(scores.failed_prompts)
        )
        if self._left_out_in_a_row >= self._patience:
            reason = (
                "truncated_responses='mask': all were cut off by max_response_length; raise it, or set truncated_responses to "
                "'score'"
                if TRUNCATED in scores.left_out.values()
                else f"on_reward_failure='drop': {self._described()}"
            )
            raise RewardsFailed(
                f"{self._left_out_in_a_row} responses one after another were left out, and there is nothing to train; {reason}"
            )

    def _described(self) -> str:
        return "unknown" if self._last is None else f"{self._last.name} ({self._last.kind}): {self._last.message}"


def _last(failures: Sequence[Failure]) -> Failure | None:
    return failures[-1] if failures else None
