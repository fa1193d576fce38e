"""Open requests to env-runners, and the driver's records of the env-runners. Plain Python, tested without Ray.

    sent ──▶ answered                         the oldest request of an env-runner is answered first
      └────▶ lost with its incarnation

A restarted env-runner is a new incarnation of the same one. What the old incarnation held is lost once, by its name; requests
that are still on their way reach the new one.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tppo_rl.core.prompts import Ticket


@dataclass
class EnvRunnerRecord:
    """The driver's knowledge of an env-runner."""

    incarnation: str | None = None
    """Incarnation that gave the last answer; None before the first answer."""
    oldest_version: int = 0
    """Lower bound on the policy version of every token that the env-runner holds or will sample."""
    waiting_tickets: int = 0
    """Number of tickets that it had not begun at the last answer."""
    requests: deque[Sequence[Ticket]] = field(default_factory=deque)
    """Tickets of each open request, oldest request first."""

    @property
    def num_tickets(self) -> int:
        """Number of tickets that it has not begun, or that are on their way to it."""
        return self.waiting_tickets + sum(map(len, self.requests))


class OpenRequests:
    """The records of all env-runners, by index."""

    def __init__(self) -> None:
        self._records: defaultdict[int, EnvRunnerRecord] = defaultdict(EnvRunnerRecord)
        self._lost: set[str] = set()
        self._told: set[str] = set()

    def __getitem__(self, env_runner: int) -> EnvRunnerRecord:
        return self._records[env_runner]

    @property
    def num_requests(self) -> int:
        """Number of open requests."""
        return sum(len(record.requests) for record in self._records.values())

    def known(self) -> list[int]:
        """Returns the env-runners that have a record."""
        return list(self._records)

    def busy(self) -> set[int]:
        """Returns the env-runners that have open requests."""
        return {env_runner for env_runner, record in self._records.items() if record.requests}

    def answer(self, env_runner: int) -> Sequence[Ticket]:
        """Takes the answered request off the record and returns its tickets; none if the request was given up."""
        requests = self._records[env_runner].requests
        return requests.popleft() if requests else ()

    def lose(self, env_runner: int) -> EnvRunnerRecord:
        """Forgets an env-runner and returns its record; answers of its incarnation are ignored from here on."""
        record = self._records.pop(env_runner, EnvRunnerRecord())
        if record.incarnation is not None:
            self._lost.add(record.incarnation)
        return record

    def is_lost(self, incarnation: str) -> bool:
        """Whether an incarnation was given up; its tickets then went out again."""
        return incarnation in self._lost

    def must_be_told(self, incarnation: str) -> bool:
        """Whether a lost incarnation must still be told to abandon its episodes; true once for each."""
        must = incarnation not in self._told
        self._told.add(incarnation)
        return must

    def oldest_versions(self, env_runners: Iterable[int]) -> list[int]:
        """Returns for each env-runner the oldest version that it holds or will sample with."""
        return [self._records[env_runner].oldest_version for env_runner in env_runners]

    def clear(self) -> None:
        """Forgets everything; answers of the present incarnations are ignored from here on."""
        for env_runner in self.known():
            self.lose(env_runner)
