"""Processes that end with the one that has started them, also where it is killed and nobody cleans up after it."""

from __future__ import annotations

import fcntl
import multiprocessing
import os
import signal


def die_with_parent(lifeline: int) -> None:
    """Lets the kernel kill this process when the other end of a pipe is closed, whatever this process is busy with.

    The other end is the parent's alone, so this is the parent's end. A process that waits for its next message sees that anyhow.

    Args:
        lifeline: Descriptor of the end that is read.
    """
    if not hasattr(fcntl, "F_SETSIG"):
        return
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def die_with_starter() -> None:
    """Does the same in a process that `multiprocessing` has started."""
    if (starter := multiprocessing.parent_process()) is not None:
        die_with_parent(starter.sentinel)
