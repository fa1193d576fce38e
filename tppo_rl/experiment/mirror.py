"""Copies a run's folder to a URI while the run goes on.

    run                                     thread of one copy
      wait for the copy before   ◀────────── ended, or failed
      save a checkpoint, remove old ones
      begin ──────────────────────────────▶  metrics and logs as far as they went, then the newest checkpoint
      train                                  remove old checkpoints there
      …
      close: one more copy, and wait

One copy is under way at a time, and what it reads is not removed meanwhile: the run waits before it saves the next checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from tppo_rl.core.errors import RunError
from tppo_rl.core.storage import Storage, first_line
from tppo_rl.core.waiting import stage
from tppo_rl.experiment.checkpoints import find_newest_checkpoint, iteration_of
from tppo_rl.experiment.stored_checkpoints import copy_checkpoint
from tppo_rl.experiment.stored_runs import Files, copy_files, files_of_run


class Mirror:
    """The copy of a run's folder at a URI. Leaving its block copies what is missing.

    Args:
        folder: Of the run.
        storage: Of its copy.
        num_to_keep: Number of newest checkpoints to keep there; None keeps all.
        say: Shows a line, where an error may not be raised because of another one.
        at_once: Says whether the block is to be left without another copy.
        newest: Iteration of the newest checkpoint that is there; None: there is none.
    """

    def __init__(
        self,
        folder: Path,
        storage: Storage,
        num_to_keep: int | None,
        *,
        say: Callable[[str], None],
        at_once: Callable[[], bool] = lambda: False,
        newest: int | None = None,
    ) -> None:
        self._folder = folder
        self._storage = storage
        self._num_to_keep = num_to_keep
        self._say = say
        self._at_once = at_once
        self._newest = newest
        self._sent: Files = {}
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if self._at_once():
            return False
        try:
            self.close()
        except RunError as failed:
            if error is None:
                raise
            self._say(str(failed))
        return False

    def holds(self) -> str:
        """Says what can be resumed there now."""
        newest = "no checkpoint" if self._newest is None else f"the checkpoint of iteration {self._newest}"
        return f"{self._storage.shown} holds {newest}"

    def wait(self) -> None:
        """Waits until no copy is under way."""
        if self._thread is None:
            return
        if self._thread.is_alive():
            with stage(f"copying to {self._storage.shown}", cut="after", part="saving"):
                self._thread.join()
        self._thread = None

    def begin(self) -> None:
        """Begins to copy what the folder holds now, in a thread of its own.

        Raises:
            RunError: the copy before has failed.
        """
        self.wait()
        self._check()
        files, checkpoint = files_of_run(self._folder), find_newest_checkpoint(self._folder)
        self._thread = threading.Thread(target=self._copy, args=(files, checkpoint), name="mirror", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Copies what is not there yet, and waits.

        Raises:
            RunError: it has failed.
        """
        self.wait()
        # Once more, also after a failure: it may be over.
        self._error = None
        self.begin()
        self.wait()
        self._check()

    def _copy(self, files: Files, checkpoint: Path | None) -> None:
        try:
            copy_run(self._folder, files, checkpoint, self._storage, self._num_to_keep, sent=self._sent)
        except Exception as error:
            self._error = error
        else:
            self._newest = self._newest if checkpoint is None else iteration_of(checkpoint)

    def _check(self) -> None:
        if self._error is not None:
            raise RunError(
                f"{self._storage.shown} cannot be written, after several tries: {first_line(self._error)}; {self.holds()}, and "
                f"{self._folder} holds everything. The same command with --resume goes on from there, and copies what is missing"
            ) from self._error


def copy_run(
    folder: Path, files: Files, checkpoint: Path | None, storage: Storage, num_to_keep: int | None, *, sent: Files
) -> None:
    """Copies what a run's folder held at a moment.

    Args:
        folder: Of the run.
        files: From `files_of_run`.
        checkpoint: The newest one, whole; None: there is none.
        storage: Where to.
        num_to_keep: Number of newest checkpoints to keep there; None keeps all.
        sent: Which of the files are there already; is brought up to date.

    Raises:
        OSError: the file system refuses something, after a few tries.
    """
    # First, so that a checkpoint that is chosen finds the results up to it.
    copy_files(folder, files, storage, sent)
    if checkpoint is not None:
        copy_checkpoint(checkpoint, storage, num_to_keep)
