"""Saves the checkpoints of a run, while it trains on where it says so (`checkpoint_config.in_background`).

    run                                     thread of one checkpoint
      wait for the checkpoint before  ◀───── ended, or failed
      copy what training will change
      begin ───────────────────────────────▶ write files and checksums, in a folder that is not found
      train                                  wait for the copy of the one before to its URI (`mirror`)
      …                                      rename, remove old checkpoints
      look after every iteration      ◀───── failed?
      wait, when the run ends         ◀───── begin its copy to the URI

One checkpoint is under way at a time. Whatever ends the run waits for it, but for a second Ctrl-C: that is a kill, and leaves the
checkpoint before.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tppo_rl.config.options import Options
from tppo_rl.config.run_files import CheckpointConfig
from tppo_rl.core.background import begun
from tppo_rl.core.storage import first_line
from tppo_rl.core.waiting import stage
from tppo_rl.experiment.checkpoints import begin_saving, iteration_of, put_checkpoint, write_partial
from tppo_rl.experiment.mirror import Mirror
from tppo_rl.plan.memory import Memory, host_memory, with_checkpoint


class Saver:
    """Saves the checkpoints of a run. Leaving its block waits for the one under way.

    Args:
        num_to_keep: Number of newest checkpoints to keep; None keeps all.
        mirror: Copies the run's folder to its URI; None: nothing does.
        in_background: Whether the run trains on while files are written.
        say: Shows a line, where an error may not be raised because of another one.
        at_once: Says whether the block is to be left without a wait.
    """

    def __init__(
        self,
        num_to_keep: int | None,
        mirror: Mirror | None = None,
        *,
        in_background: bool,
        say: Callable[[str], None],
        at_once: Callable[[], bool] = lambda: False,
    ) -> None:
        self._num_to_keep = num_to_keep
        self._mirror = mirror
        self._in_background = in_background
        self._say = say
        self._at_once = at_once
        self._under_way: tuple[Path, Future[None]] | None = None

    def __enter__(self) -> Saver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if self._at_once() or self._under_way is None:
            return False
        target, _ = self._under_way
        try:
            self.wait()
        except Exception as failed:
            if error is None:
                raise
            self._say(f"{target} was not saved: {first_line(failed)}")
        return False

    def save(self, algorithm: Any, target: Path) -> None:
        """Saves a checkpoint, or begins to, when the one before has ended.

        Args:
            algorithm: What is saved.
            target: From `checkpoint_path`; an older checkpoint there is replaced.

        Raises:
            RunError: there is no room for it, or for the one before; those that are whole stay as they are.
            ProcessDied: a learner died while it wrote the one before.
        """
        self.wait()
        with stage(f"saving the checkpoint of iteration {iteration_of(target)}", cut="after", part="saving"):
            if not self._in_background:
                write_partial(target, algorithm.save_to_path)
                self._put(target)
                return
            write = begin_saving(target, algorithm.begin_checkpoint)

        def finish() -> None:
            write()
            self._put(target)

        self._under_way = target, begun(finish, "checkpoint")

    def check(self) -> None:
        """Raises the error of a checkpoint that was to be written, without a wait."""
        if self._under_way is not None and self._under_way[1].done():
            self.wait()

    def wait(self) -> None:
        """Waits until no checkpoint is under way, and raises its error, which is that of `save`."""
        if self._under_way is None:
            return
        target, future = self._under_way
        if not future.done():
            with stage(f"writing the checkpoint of iteration {iteration_of(target)}", cut="after", part="saving"):
                # A second Ctrl-C ends it, and the checkpoint is still under way.
                future.exception()
        self._under_way = None
        future.result()

    def _put(self, target: Path) -> None:
        if self._mirror is not None:
            # What is being copied may be the oldest one, which is removed now.
            self._mirror.wait()
        put_checkpoint(target, self._num_to_keep)
        if self._mirror is not None:
            self._mirror.begin()


def memory_of_saving(
    config: CheckpointConfig, memory: Memory, options: Options, available: int
) -> tuple[Memory, bool, str]:
    """Decides whether a run trains on while its checkpoints are written.

    Args:
        config: Of the run.
        memory: What the run needs beside it.
        options: Of the run.
        available: Bytes of this machine.

    Returns:
        What the run needs with it, whether it does, and a line for the user, which may be empty.
    """
    wanted = config.in_background
    if wanted is False or not config.checkpoint_frequency:
        return memory, False, ""
    with_copy = with_checkpoint(memory, options)
    needed = host_memory(with_copy, options)
    if wanted or needed <= available:
        return with_copy, True, ""
    words = (
        "the run stands still while a checkpoint is written: a copy of weights and moments does not fit into this machine's memory; "
        "checkpoint_config.in_background=true makes it nevertheless"
    )
    return memory, False, words
