"""When the results of scoring workers reached an env-runner: what its run depends on beside its requests.

An env-runner asks its pool for results at moments that follow from its engine steps: before each, after each, and where it waits with
nothing to generate. Jobs are numbered as they are handed in. So a text says what another run needs to be the same:

    3:1 2:-1,2 4! 1:1?0     three moments on, the job one above the last one was taken; two moments on, the jobs one below that and two
                            above that; four moments on, the env-runner waited no longer; one moment on, the next job, which had failed
                            as the first of the `failures` says

What a job gave is not kept: an environment and rewards that give the same for the same response are the user's part. Failures are
kept, since a deadline that was broken once may hold the next time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.rollout.responses import Failure


@dataclass(frozen=True)
class ScoringOrder:
    """A part of the order, as JSON can hold it."""

    text: str = ""
    failures: Sequence[Sequence[str]] = ()
    """Name, kind and message of each."""

    def __bool__(self) -> bool:
        return bool(self.text)


@dataclass(frozen=True)
class Moment:
    """What happened at a moment at which something happened."""

    number: int
    taken: tuple[tuple[int, Failure | None], ...] = ()
    """Numbers of jobs in the order in which they were taken, and how each failed."""
    stopped: bool = False


@dataclass
class OrderWriter:
    """Writes the order down.

    Args:
        keeps: Whether anybody will ask for it.
    """

    keeps: bool
    _moment: int = 0
    _last_moment: int = 0
    _last_job: int = 0
    _words: list[str] = field(default_factory=list)
    _failures: list[tuple[str, str, str]] = field(default_factory=list)

    def next_moment(self, taken: Sequence[tuple[int, Any]] = (), *, stopped: bool = False) -> None:
        """Is told of a moment.

        Args:
            taken: Numbers and results of the jobs whose results were taken.
            stopped: Whether the env-runner waited no longer for any.
        """
        self._moment += 1
        if not self.keeps or not (taken or stopped):
            return
        jobs = ",".join(self._job(number, result) for number, result in taken)
        self._words.append(f"{self._moment - self._last_moment}{'!' if stopped else f':{jobs}'}")
        self._last_moment = self._moment

    def pop(self) -> ScoringOrder:
        """Returns what was written since the last call."""
        order = ScoringOrder(" ".join(self._words), tuple(self._failures))
        self._words, self._failures = [], []
        return order

    def _job(self, number: int, result: Any) -> str:
        step, self._last_job = number - self._last_job, number
        if not isinstance(result, Failure):
            return str(step)
        self._failures.append((result.name, result.kind, result.message))
        return f"{step}?{len(self._failures) - 1}"


def read_order(parts: Sequence[Mapping[str, Any]]) -> Iterator[Moment]:
    """Yields the moments of an order.

    Args:
        parts: All parts of an env-runner's order, the first one first: the attributes of `ScoringOrder`.

    Raises:
        ValueError: a text is not one that was written.
    """
    moment = job = 0
    for part in parts:
        failures = [Failure(*values) for values in part["failures"]]
        for word in part["text"].split():
            step, colon, jobs = word.rstrip("!").partition(":")
            moment += _positive(step)
            taken = []
            for one in jobs.split(",") if colon else ():
                number, failed, index = one.partition("?")
                job = _positive(job + int(number))
                taken.append((job, failures[int(index)] if failed else None))
            yield Moment(moment, tuple(taken), stopped=word.endswith("!"))


def _positive(number: int | str) -> int:
    if int(number) < 1:
        raise ValueError(f"{number} is not above 0")
    return int(number)


class FollowedOrder:
    """An order that a run follows.

    Args:
        parts: See `read_order`.

    Raises:
        ValueError: see `read_order`.
    """

    def __init__(self, parts: Sequence[Mapping[str, Any]]) -> None:
        self._moments = deque(read_order(parts))
        self._number = 0

    @property
    def is_over(self) -> bool:
        """Whether what comes now was never told to the driver of the recorded run."""
        return not self._moments

    def next_moment(self) -> Moment:
        """Goes on by one moment, and returns what happened in it."""
        self._number += 1
        if self._moments and self._moments[0].number == self._number:
            return self._moments.popleft()
        return Moment(self._number)
