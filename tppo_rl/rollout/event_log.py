"""The order of events of a run, as the driver made and met them: enough to make the run again.

An env-runner is one actor that does what it is asked in the order in which it is asked. What it samples follows from its requests,
from the weights between them, and from the run's seed. So all that two runs can differ by is the driver's order:

    s1    a request for samples was sent to env-runner 1
    r1    its answer was taken
    w1    the newest weights were sent to it
    b     an update took its batch from the queue
    u     the update ended

Where scoring workers run environment and rewards, the order in which each env-runner took their results is kept too, in either mode
(`scoring_order`).

`events.jsonl` has a line for each iteration, after one that says what the run was.
"""

from __future__ import annotations

import json
import zlib
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.rollout.scoring_order import ScoringOrder, read_order

FILE = "events.jsonl"
BATCH, UPDATE = "b", "u"
_RESUMED = "resumed_after"
_SCORING = "scoring"
_CHECK = "check"
"""Key of a line's checksum, which files of the last release do not have."""
_CRITIC_START = "critic_starts_at"
SENT, TAKEN, WEIGHTS, LOST = "s", "r", "w", "l"


class EventLog:
    """Is told of events and keeps none."""

    critic_starts_at: float | None = None
    """Mean return of the first evaluation, which new critics were told."""

    def note(self, what: str, env_runner: int | None = None) -> None:
        """Is told of an event."""

    def note_scoring(self, env_runner: int, order: ScoringOrder) -> None:
        """Is told in which order an env-runner took the results of its scoring workers."""

    def end_iteration(self, number: int, checksum: int) -> None:
        """Is told that an iteration has ended, and of its weights."""

    def resumes(self, number: int) -> None:
        """Is told that the run goes on from the checkpoint of an iteration."""


class RecordedEvents(EventLog):
    """Keeps the events of a run in its folder.

    Args:
        folder: Of the run.
        facts: What the run was, as JSON; written if the file is new.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        self._file = folder / FILE
        self._facts = dict(facts)
        self._events: list[str] = []
        self._scoring: defaultdict[str, list[ScoringOrder]] = defaultdict(list)

    def note(self, what: str, env_runner: int | None = None) -> None:
        self._events.append(what if env_runner is None else f"{what}{env_runner}")

    def note_scoring(self, env_runner: int, order: ScoringOrder) -> None:
        if order:
            self._scoring[str(env_runner)].append(order)

    def end_iteration(self, number: int, checksum: int) -> None:
        entry: dict[str, Any] = {"iteration": number, "events": " ".join(self._events), "weights": checksum}
        if self._scoring:
            entry[_SCORING] = {key: [asdict(order) for order in orders] for key, orders in self._scoring.items()}
        if number == 1:
            entry[_CRITIC_START] = self.critic_starts_at
        self._append(entry)

    def resumes(self, number: int) -> None:
        self._append({_RESUMED: number})

    def _append(self, entry: Mapping[str, Any]) -> None:
        self._events, self._scoring = [], defaultdict(list)
        entry = {**entry, _CHECK: _checksum(entry)}
        lines = [] if self._file.is_file() else [self._facts]
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as stream:
            stream.writelines(json.dumps(line) + "\n" for line in [*lines, entry])


class ReplayedEvents(EventLog):
    """Gives the events of a recorded run, one after the other.

    Args:
        folder: Of the run.

    Raises:
        OptionError: see `read_events`.
    """

    def __init__(self, folder: Path) -> None:
        _, lines = read_events(folder)
        self._events = (event for line in lines for event in line["events"].split())
        self._next: str | None = None

    def peek(self) -> str:
        """Returns the next event, which stays.

        Raises:
            RunError: there is none.
        """
        if self._next is None:
            self._next = next(self._events, None)
        if self._next is None:
            raise RunError("the recorded events are over; the run that is replayed ended here")
        return self._next

    def take(self) -> tuple[str, int]:
        """Returns the next event and its env-runner (0 where there is none), and goes on.

        Raises:
            RunError: there is none, or the run lost an env-runner here.
        """
        event, self._next = self.peek(), None
        what, env_runner = event[:1], int(event[1:] or 0)
        if what == LOST:
            raise RunError(
                f"the recorded run lost env-runner {env_runner} here; what was on its way then nobody knows, so the replay ends"
            )
        return what, env_runner


def read_events(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Returns what a recorded run was, and the events of its iterations, up to where it was resumed or killed.

    Raises:
        OptionError: it has recorded none, or the file is not one that a run has written.
    """
    file = folder / FILE
    if not file.is_file():
        raise OptionError(f"{folder}: has no {FILE}; a run keeps its events with record_events=True")
    entries: list[dict[str, Any]] = []
    rows = file.read_bytes().split(b"\n")
    for number, row in enumerate(rows[:-1], 1):
        try:
            entry = dict(json.loads(row))
        except (ValueError, TypeError) as error:
            raise OptionError(f"{file}: line {number} is not what a run writes: {error}") from None
        check = entry.pop(_CHECK, None)
        if check not in (None, _checksum(entry)):
            raise OptionError(f"{file}: line {number} is not what the run has written: its checksum differs")
        entries.append(entry)
    # What stands behind the last line break was cut by a kill.
    facts, lines = (entries[0], entries[1:]) if entries else ({}, [])
    resumed = next((place for place, line in enumerate(lines) if _RESUMED in line), None)
    lines = lines[:resumed]
    if not isinstance(facts.get("options"), dict) or not all(_is_iteration(line) for line in lines):
        raise OptionError(
            f"{file}: does not begin with what the run was, or lacks parts; a run writes it with record_events=True"
        )
    if [line["iteration"] for line in lines] != list(range(1, len(lines) + 1)) or not lines:
        reason = "the run was resumed before it had recorded any" if resumed is not None else "it is not there"
        raise OptionError(f"{file}: a replay begins with iteration 1, and {reason}")
    return facts, lines


def _checksum(entry: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(entry, sort_keys=True).encode())


def read_critic_start(folder: Path, measured: float | None) -> float | None:
    """Returns the mean return that new critics were told before the first update; None: they were told none.

    Args:
        folder: Of the run.
        measured: What the first evaluation says now; files of the last release do not tell what it said then.

    Raises:
        OptionError: see `read_events`.
    """
    value = read_events(folder)[1][0].get(_CRITIC_START, measured)
    return None if value is None else float(value)


def read_scoring(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Returns the parts of the order of each env-runner's scoring workers, by env-runner; empty where there were none.

    Raises:
        OptionError: see `read_events`; or an order is not one that a run has written.
    """
    _, lines = read_events(folder)
    found: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    try:
        for line in lines:
            for env_runner, parts in line.get(_SCORING, {}).items():
                found[int(env_runner)] += parts
        for parts in found.values():
            list(read_order(parts))
    except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise OptionError(
            f"{folder / FILE}: its orders of scoring workers are not what a run writes: {error}"
        ) from None
    return dict(found)


def _is_iteration(line: Mapping[str, Any]) -> bool:
    kinds = {"iteration": int, "events": str, "weights": int}
    return all(isinstance(line.get(key), kind) for key, kind in kinds.items())
