"""The train queue and the bound on staleness. Plain Python, tested without Ray.

Symbols: v = the trainer's policy version; u = the version that sampled a token; eta = `max_staleness`;
B = tokens of one update; d = `max_queued_batches`, at least 1. A token is trained at version v with staleness v - u; the update then makes v + 1.

Claim: every token is trained with staleness at most eta, and none is thrown away.

- A token that is outstanding while version v is trained, and is not in that batch, is trained at v + 1 at the
  earliest. So the update at v may only begin when every token that stays outside has u >= v + 1 - eta.
- Tokens in the queue: the batch takes the oldest first, and takes all with u < v + 1 - eta even beyond B.
- Tokens in open windows: `may_update` waits until none is older than v + 1 - eta. The env-runners that hold such
  tokens are always given engine steps, so their windows close: in a slot after at most `window_length` steps; where an
  answer or a reward is pending (scoring workers) after finitely many jobs, each of which a deadline ends. Env-runners
  count pending windows as open; an episode that has its answer and no slot hands over its window.
- By induction no outstanding token ever has v - u > eta.

                          waits for                                       unblocked by
    update at v           queue >= B; no open token older than v+1-eta    fragments
    env-runner (steps)    queue + what it was already asked for < d*B,    an update that takes from the queue
                          unless the update waits for its open windows

Both cannot wait for each other: an env-runner that waits holds the queue at d*B >= B tokens, and an update that
waits for open windows lifts the env-runner's limit.

Whole responses are windows that are as long as the cap. Those of a group wait for one another and leave the queue together;
while they wait they count as open (`rollout/group_gate.py`).

Example: eta = 2, B = 4096. At v = 7 the queue holds tokens of versions 5, 6, 7, and an open window began at version 5.
The update must wait (5 < 7 + 1 - 2 = 6): trained at v = 8, that window would have staleness 3.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from itertools import count

from tppo_rl.core.fragments import Fragment

REQUESTS_IN_FLIGHT = 2
"""Most open requests to an env-runner: one that runs and one that waits, so that it is never idle between two."""


class TrainQueue:
    """Fragments that wait for an update, the oldest policy version first; those of a group leave together."""

    def __init__(self) -> None:
        self._heap: list[tuple[int, int, list[Fragment]]] = []
        self._arrival = count()
        self.num_tokens = 0

    def __len__(self) -> int:
        return sum(len(unit) for _, _, unit in self._heap)

    @property
    def oldest_version(self) -> int | None:
        """Policy version of the oldest token in the queue; None where it is empty."""
        return self._heap[0][0] if self._heap else None

    def push(self, fragments: Iterable[Fragment]) -> None:
        """Adds fragments; among equally old fragments the first to arrive is the first to leave."""
        for fragment in fragments:
            self.push_group([fragment])

    def push_group(self, group: list[Fragment]) -> None:
        """Adds fragments that leave together; they are as old as the oldest of them."""
        heapq.heappush(self._heap, (min(fragment.oldest_version for fragment in group), next(self._arrival), group))
        self.num_tokens += sum(map(len, group))

    def pop(self, num_tokens: int, *, oldest_allowed_to_stay: int) -> list[Fragment]:
        """Removes and returns at least `num_tokens` tokens, and every fragment with a token older than the given version.

        If the queue holds fewer tokens, it is emptied.
        """
        taken: list[Fragment] = []
        taken_tokens = 0
        while self._heap and (taken_tokens < num_tokens or self._heap[0][0] < oldest_allowed_to_stay):
            unit = self._pop_oldest()
            taken += unit
            taken_tokens += sum(map(len, unit))
        return taken

    def pop_older_than(self, version: int) -> list[Fragment]:
        """Removes and returns the fragments with a token older than a version; the others of their groups stay."""
        taken: list[Fragment] = []
        while self._heap and self._heap[0][0] < version:
            unit = self._pop_oldest()
            taken += [fragment for fragment in unit if fragment.oldest_version < version]
            if rest := [fragment for fragment in unit if fragment.oldest_version >= version]:
                self.push_group(rest)
        return taken

    def fragments(self) -> list[Fragment]:
        """Returns the waiting fragments in the order in which they would be taken."""
        return [fragment for _, _, unit in sorted(self._heap, key=lambda entry: entry[:2]) for fragment in unit]

    def _pop_oldest(self) -> list[Fragment]:
        _, _, unit = heapq.heappop(self._heap)
        self.num_tokens -= sum(map(len, unit))
        return unit


def oldest_allowed_to_stay(version: int, max_staleness: int) -> int:
    """Returns the oldest version that a token may have if the update at `version` does not train it."""
    return version + 1 - max_staleness


def may_update(version: int, max_staleness: int, oldest_open_versions: Iterable[int]) -> bool:
    """Whether no open window would be too old after the update at `version`.

    Args:
        version: the trainer's policy version.
        max_staleness: bound in versions, at least 1.
        oldest_open_versions: for each env-runner the oldest version among its open tokens; without open tokens, the
            version that its next token will have.
    """
    least = oldest_allowed_to_stay(version, max_staleness)
    return all(oldest >= least for oldest in oldest_open_versions)
