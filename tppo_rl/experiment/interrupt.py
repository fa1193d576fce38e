"""Ctrl-C in a run: what is said at once, what is cut short, and what a second one does.

    first, before the first update      ends at once: nothing was trained
    first, during an evaluation         the evaluation is dropped, a checkpoint is saved
    first, asynchronous sampling        it stops, a checkpoint is saved; finished windows wait in it
    first, sampling with one update     the iteration is finished, as its tokens would be lost, and a checkpoint is saved
    first, during an update             the same
    second                              ends at once: the newest checkpoint is all that there is

In none of these cases is anything evaluated at the end.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Literal, Protocol

from tppo_rl.core.waiting import Stage, StageCut
from tppo_rl.experiment.checkpoints import checkpoint_path, find_newest_checkpoint, iteration_of, size_in_words

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C ended a run; what there was to say has been said.

    Attributes:
        status: Exit status for a shell: 128 and the number of the signal.
        at_once: Whether parts of the run may still be at work in this process.
    """

    def __init__(self, number: int, *, at_once: bool) -> None:
        super().__init__()
        self.status = 128 + number
        self.at_once = at_once


class Display(Protocol):
    """What a switch needs of a run's display."""

    in_update: bool
    stop_asked: bool

    @property
    def stage(self) -> Stage | None:
        """The stage under way."""

    def message(self, text: str) -> None:
        """Prints a line."""


class StopSwitch:
    """Turns the first Ctrl-C (or SIGTERM) of a run into a wish, and the second one into its end.

    Args:
        display: Knows the stage under way, prints, and is told when the run is to stop.
        folder: Of the run.
        size: Bytes of a checkpoint, roughly.
        iteration: Of the checkpoint that the run goes on from; 0 for a new run.
        elsewhere: Says what is kept at a URI; None: nothing is.
    """

    def __init__(
        self,
        display: Display,
        folder: Path,
        size: Callable[[], int],
        iteration: int = 0,
        elsewhere: Callable[[], str] | None = None,
    ) -> None:
        self.iteration = iteration
        """Last iteration that has ended."""
        self.has_trained = False
        """Whether an iteration has ended in this process."""
        self.doing: Literal["training", "saving", "saved"] = "training"
        """`saving`: a checkpoint is being written; `saved`: the last one is."""
        self.number: int | None = None
        """Signal that was sent; None: none was."""
        self.at_once = False
        """Whether the run is to end without saving."""
        self._display = display
        self._folder = folder
        self._size = size
        self._elsewhere = elsewhere

    @property
    def asked(self) -> bool:
        """Whether the run is to stop."""
        return self.number is not None

    def ask(self, number: int, frame: FrameType | None = None) -> None:
        """Takes a signal.

        Raises:
            StageCut: what is under way can be cut short here.
            KeyboardInterrupt: it is the second one.
        """
        name = _NAMES.get(signal.Signals(number), str(number))
        if self.asked:
            self.at_once = True
            self._display.message(f"{name} again: ends at once; {self.on_disk()}")
            raise KeyboardInterrupt
        self.number = number
        self._display.stop_asked = True
        stage = self._display.stage
        must_end = self._display.in_update or (stage is not None and stage.cut == "after")
        if not self.has_trained and not must_end and self.doing == "training":
            self.at_once = True
            during = "" if stage is None else f" ({stage.words})"
            self._display.message(
                f"{name}: ends now{during}; no update has ended, so nothing is saved; {self.on_disk()}"
            )
            raise StageCut
        self._display.message(f"{name}: {self._what_follows(stage, must_end)}")
        if stage is not None and stage.cut == "at_once" and self.doing != "saving":
            raise StageCut

    def on_disk(self) -> str:
        """What can be resumed now."""
        newest = find_newest_checkpoint(self._folder)
        elsewhere = "" if self._elsewhere is None else f"; {self._elsewhere()}"
        if newest is None:
            return f"there is no checkpoint in {self._folder}{elsewhere}"
        return f"the newest checkpoint is {newest}, of iteration {iteration_of(newest)}{elsewhere}"

    def _what_follows(self, stage: Stage | None, must_end: bool) -> str:
        if self.doing == "saved":
            dropped = "" if stage is None else f"drops the {stage.words} under way; "
            if stage is not None and stage.cut == "after":
                dropped = f"finishes {stage.words}; "
            return f"{dropped}the run has ended, and {self.on_disk()}"
        size = f"about {size_in_words(self._size())}"
        if self.doing == "saving":
            now = f"finishes the checkpoint that is being saved ({size})"
        else:
            iteration = self.iteration + must_end
            if stage is not None and stage.cut == "at_once":
                now = f"drops the {stage.words} under way"
            elif must_end:
                now = f"finishes iteration {iteration}{'' if stage is None else f' ({stage.words})'}"
            else:
                now = "stops sampling now"
            now += f", saves {checkpoint_path(self._folder, iteration)} ({size})"
        return f"{now}, and ends without a last evaluation. Once more ends at once; then {self.on_disk()}"


@contextmanager
def listening(switch: StopSwitch) -> Iterator[None]:
    """Hands Ctrl-C and SIGTERM to a switch until the block ends."""
    previous = {number: signal.signal(number, switch.ask) for number in _NAMES}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
