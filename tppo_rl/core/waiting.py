"""What a run is waiting for, told by whoever makes it wait, shown by whoever asked for it, and cut short by Ctrl-C.

    with stage("starting 2 engines"):               # told to the watcher of this context, if there is one
        ...
    with watched_by(watcher):                       # the command line does so; the Python API and Tune do not
        ...

Stages follow one another: one that begins ends the one before, also where it begins within it. In Ray's actors nobody watches.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal, Protocol

Cut = Literal["at_once", "soon", "after"]
"""What Ctrl-C does to a stage. `at_once`: `StageCut` is raised in it; `soon`: it calls `stop_here` often; `after`: it is finished."""
Part = Literal["start", "evaluation", "update", "saving"]


class StageCut(KeyboardInterrupt):
    """Ends a stage that Ctrl-C cut short. It is no `Exception`, so that nobody takes it for a failure and tries again."""


class Watcher(Protocol):
    """Shows stages, and knows whether the user wants the run to stop."""

    @property
    def stop_asked(self) -> bool:
        """Whether the run is to stop."""

    def begin(self, stage: Stage) -> None:
        """A stage begins, and the one before has ended."""

    def advance(self, stage: Stage, done: int) -> None:
        """So much of a stage is done. It may be called from another thread, and after the stage has ended."""

    def end(self, stage: Stage) -> None:
        """A stage has ended, if it is still the current one."""


_watcher: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@dataclass(frozen=True, eq=False)
class Stage:
    """Something that takes time."""

    words: str
    """What happens, such as "starting 2 engines"."""
    total: int | None = None
    """What `advance` counts up to; None: it has no count."""
    unit: str = ""
    """What is counted."""
    cut: Cut = "at_once"
    part: Part = "start"
    """Part of the run that it belongs to; those of updates come back with every one."""
    watcher: Watcher | None = None

    def advance(self, done: int) -> None:
        """Says how much is done."""
        if self.watcher is not None:
            self.watcher.advance(self, done)


@contextmanager
def watched_by(watcher: Watcher) -> Iterator[None]:
    """Lets a watcher see the stages of this context."""
    token = _watcher.set(watcher)
    try:
        yield
    finally:
        _watcher.reset(token)


@contextmanager
def stage(
    words: str, *, total: int | None = None, unit: str = "", cut: Cut = "at_once", part: Part = "start"
) -> Iterator[Stage]:
    """Tells the watcher that a stage begins, and when it ends. The arguments are those of `Stage`."""
    watcher = _watcher.get()
    current = Stage(words, total, unit, cut, part, watcher)
    if watcher is None:
        yield current
        return
    watcher.begin(current)
    try:
        yield current
    finally:
        watcher.end(current)


def stop_here() -> None:
    """Ends a stage at a place where nothing is lost, if the user wants the run to stop.

    Raises:
        StageCut: the run is to stop.
    """
    watcher = _watcher.get()
    if watcher is not None and watcher.stop_asked:
        raise StageCut
