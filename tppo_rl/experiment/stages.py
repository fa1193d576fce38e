"""What a run is waiting for: one line that rewrites itself in a terminal, elsewhere a line at the start and at the end of each stage."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

from tppo_rl.core.waiting import Stage
from tppo_rl.experiment.time_left import minutes

LINE_EVERY_S = 10.0
"""Least time between two counts of a stage where there is no terminal."""
_WORTH_A_LINE_S = 1.0
"""A stage that took less has no line at its end."""


class StageLines:
    """Shows the stages of a start, a run or an evaluation; a `Watcher` that never asks to stop.

    Args:
        console: Where to.
        name: What every line begins with.
        clock: Seconds.
    """

    def __init__(self, console: Console, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.current: Stage | None = None
        """Stage under way; None: none was told."""
        self.shows_updates = True
        """Whether stages of updates have lines of their own, as those of the first one have."""
        self.shows_ends = True
        """Whether the end of a stage has a line; one that Ctrl-C cut short was not finished."""
        self._console = console
        self._name = name
        self._clock = clock
        self._began = 0.0
        self._last_line = 0.0
        # Counts come from another thread, and a terminal is drawn by a third one. There is no lock: whoever prints waits for the
        # drawing, which would wait for the lock. So a count carries its stage, and a late one is nobody's.
        self._counted: tuple[Stage, int] | None = None

    @property
    def stop_asked(self) -> bool:
        return False

    def begin(self, stage: Stage) -> None:
        self._finish()
        self._began = self._last_line = self._clock()
        self.current = stage
        if self._has_lines(stage) and not self._console.is_terminal:
            self._say_begin(stage)

    def advance(self, stage: Stage, done: int) -> None:
        if stage is not self.current:
            return
        self._counted = stage, done
        now = self._clock()
        if self._has_lines(stage) and not self._console.is_terminal and now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            self._print(self.status())

    def end(self, stage: Stage) -> None:
        if stage is self.current:
            self._finish()

    def status(self) -> str:
        """The stage under way with its count and its seconds; empty where there is none."""
        stage = self.current
        if stage is None:
            return ""
        return f"{self._words(stage)}{self._count(stage)}, {_seconds(self._clock() - self._began)}"

    def _say_begin(self, stage: Stage) -> None:
        self._print(f"{self._words(stage)} ...")

    def _finish(self) -> None:
        stage, self.current = self.current, None
        if stage is None or not self._has_lines(stage):
            return
        if self._console.is_terminal and not self.shows_updates:
            # The line that rewrites itself has shown it; a long run would fill the terminal.
            return
        passed = self._clock() - self._began
        if self.shows_ends and passed >= _WORTH_A_LINE_S:
            self._print(f"{self._words(stage)}: {_seconds(passed)}")

    def _has_lines(self, stage: Stage) -> bool:
        return stage.part != "saving" and (self.shows_updates or stage.part != "update")

    def _words(self, stage: Stage) -> str:
        return f"first update, {stage.words}" if stage.part == "update" and self.shows_updates else stage.words

    def _count(self, stage: Stage) -> str:
        counted = self._counted
        if stage.total is None or counted is None or counted[0] is not stage:
            return ""
        return f": {counted[1]:,}/{stage.total:,} {stage.unit}"

    def _print(self, text: str) -> None:
        self._console.print(f"{self._name}: {text}", soft_wrap=True, highlight=False, markup=False)


class StageDisplay(StageLines):
    """Shows stages before a run has a display of its own; a context manager.

    Commands that are refused at once have an error and nothing else, so a stage has no line before it has taken a second.
    """

    def __init__(self, console: Console, name: str) -> None:
        super().__init__(console, name)
        self._live = live_status(console, lambda: Text(self.status())) if console.is_terminal else None

    def begin(self, stage: Stage) -> None:
        super().begin(stage)
        if self._live is not None:
            self._live.refresh()

    def _say_begin(self, stage: Stage) -> None:
        timer = threading.Timer(_WORTH_A_LINE_S, self._say_begin_of_current, [stage])
        timer.daemon = True
        timer.start()

    def _say_begin_of_current(self, stage: Stage) -> None:
        if stage is self.current:
            super()._say_begin(stage)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()


def live_status(console: Console, render: Callable[[], Text]) -> Live:
    """A line that is written anew once a second and disappears in the end."""
    return Live(console=console, get_renderable=render, refresh_per_second=1, transient=True)


def _seconds(passed: float) -> str:
    return f"{passed:.0f} s" if passed < 60 else minutes(passed)
