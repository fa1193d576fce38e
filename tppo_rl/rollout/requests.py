"""Requests to env-runners and what is known of each: plain Python, tested without Ray.

    sent ──▶ answered                         the oldest request of an env-runner is answered first
      └────▶ lost with its incarnation

A restarted env-runner is another incarnation of the same one. What the old one held is lost once, by its name; requests that
are still on their way reach the new one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tppo_rl.core.prompts import Ticket


@dataclass
class EnvRunnerRecord:
    """What the driver knows of an env-runner."""

    incarnation: str | None = None
    """Of the last answer; None before the first."""
    oldest_version: int = 0
    """No token that this env-runner holds or will sample is older."""
    waiting_tickets: int = 0
    """Tickets that it had not begun at the last answer."""
    requests: deque[Sequence[Ticket]] = field(default_factory=deque)
    """Tickets of each request that is not answered, oldest first."""

    @property
    def num_tickets(self) -> int:
        """Tickets that it has not begun, or that are on their way to it."""
        return self.waiting_tickets + sum(map(len, self.requests))


class RequestBook:
    """The records of all env-runners, by their numbers."""

    def __init__(self) -> None:
        self._records: defaultdict[int, EnvRunnerRecord] = defaultdict(EnvRunnerRecord)
        self._lost: set[str] = set()
        self._told: set[str] = set()

    def __getitem__(self, env_runner: int) -> EnvRunnerRecord:
        return self._records[env_runner]

    @property
    def num_requests(self) -> int:
        """Requests that are not answered."""
        return sum(len(record.requests) for record in self._records.values())

    def known(self) -> list[int]:
        """Env-runners that there are records of."""
        return list(self._records)

    def answer(self, env_runner: int) -> Sequence[Ticket]:
        """Takes the answered request off the record and returns its tickets; none where it was given up."""
        requests = self._records[env_runner].requests
        return requests.popleft() if requests else ()

    def lose(self, env_runner: int) -> EnvRunnerRecord:
        """Forgets an env-runner and its incarnation, whose answers count no more, and returns its record."""
        record = self._records.pop(env_runner, EnvRunnerRecord())
        if record.incarnation is not None:
            self._lost.add(record.incarnation)
        return record

    def is_lost(self, incarnation: str) -> bool:
        """Whether an incarnation was given up; what it held went out again."""
        return incarnation in self._lost

    def must_be_told(self, incarnation: str) -> bool:
        """Whether a lost incarnation has not been told to abandon what it holds; true once."""
        must = incarnation not in self._told
        self._told.add(incarnation)
        return must

    def oldest_versions(self, env_runners: Iterable[int]) -> list[int]:
        """Oldest version that each of the env-runners holds or will sample with."""
        return [self._records[env_runner].oldest_version for env_runner in env_runners]

    def clear(self) -> None:
        """Forgets everything; what comes of the present incarnations counts no more."""
        for env_runner in self.known():
            self.lose(env_runner)
