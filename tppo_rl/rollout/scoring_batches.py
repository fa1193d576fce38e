"""Responses on their way through the reward functions of scoring workers.

    endings ─▶ batches, as many as there are workers ─┬─ scored ──────────────────────────▶ verdicts
                                                      └─ worker killed: one by one ─┬─────▶ verdicts
                                                                                    └─────▶ a failure of that response alone

A batch must end within the deadline of one job. How many responses fit is learned: half as many after a batch that was killed, twice
as many after one that was scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from tppo_rl.rollout.endings import Ending
from tppo_rl.rollout.responses import Failure, Scores, Verdict
from tppo_rl.rollout.scoring_jobs import Scored, ScoreJob
from tppo_rl.rollout.scoring_pool import ScoringPool, Task

MOST_RESPONSES = 64


class ScoringBatches:
    """Batches of responses that workers score.

    Args:
        pool: The workers.
        retries: Whether a response on which a worker was killed is scored once more.
    """

    def __init__(self, pool: ScoringPool, *, retries: bool) -> None:
        self._pool = pool
        self._retries = retries
        self._most = MOST_RESPONSES
        self._waiting: dict[int, Ending] = {}
        self._tasks: dict[int, Task] = {}
        """By the first episode of the batch."""
        self._scored: list[tuple[Ending, Verdict]] = []
        self._scores = Scores()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def endings(self) -> list[Ending]:
        """Episodes whose verdicts have not been given out."""
        return [*self._waiting.values(), *(ending for ending, _ in self._scored)]

    def submit(self, endings: Sequence[Ending], version: int) -> None:
        """Hands episodes to the workers.

        Args:
            endings: Episodes that are over.
            version: Policy version, for functions that ask for it.
        """
        size = max(1, min(self._most, -(-len(endings) // self._pool.num_workers)))
        for start in range(0, len(endings), size):
            self._send(endings[start : start + size], version, may_retry=self._retries)

    def collect(self) -> tuple[list[tuple[Ending, Verdict]], Scores]:
        """Returns the verdicts that have come since the last call, and what else the functions gave."""
        scored, self._scored = self._scored, []
        scores, self._scores = self._scores, Scores()
        return scored, scores

    def clear(self) -> None:
        """Forgets all episodes."""
        for task in self._tasks.values():
            task.canceled = True
        self._tasks.clear()
        self._waiting.clear()
        self._scored.clear()
        self._scores = Scores()

    def _send(self, endings: Sequence[Ending], version: int, *, may_retry: bool) -> None:
        for ending in endings:
            self._waiting[_number(ending)] = ending
        job = ScoreJob([ending.response for ending in endings], version)
        take = partial(self._take, endings, version, may_retry)
        self._tasks[_number(endings[0])] = self._pool.submit(job, take)

    def _take(self, endings: Sequence[Ending], version: int, may_retry: bool, result: Any) -> None:
        del self._tasks[_number(endings[0])]
        if isinstance(result, Scored):
            if len(endings) >= self._most:
                self._most = min(MOST_RESPONSES, 2 * self._most)
            self._scores.add(result.scores)
            self._close(endings, result.verdicts)
            return
        assert isinstance(result, Failure)
        if len(endings) > 1:
            self._most = max(1, len(endings) // 2)
            for ending in endings:
                self._send([ending], version, may_retry=may_retry)
        elif may_retry:
            self._send(endings, version, may_retry=False)
        else:
            self._close(endings, [Verdict(failures=(result,))])

    def _close(self, endings: Sequence[Ending], verdicts: Sequence[Verdict]) -> None:
        for ending, verdict in zip(endings, verdicts, strict=True):
            del self._waiting[_number(ending)]
            self._scored.append((ending, verdict))


def _number(ending: Ending) -> int:
    return ending.episode.ticket.episode_id
