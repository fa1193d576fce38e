"""One scoring worker, as its parent sees it: a process of its own program, with a socket, a deadline and a memory limit.

The process is neither forked nor made by `multiprocessing`: it inherits no memory of vLLM, does not import the parent's main module,
and can be started from threads, Ray actors and daemonic processes. It leads a process group of its own, so that Ctrl-C does not reach
it, and that processes which the user's code started are killed with it. When the parent is gone, the kernel kills it.

The memory limit is on resident memory, which the parent reads every `WATCH_S` seconds. A limit on the address space
(`RLIMIT_AS`) would hit code that does no harm: numpy's threads, torch and CUDA reserve gigabytes that they never touch. What a job
takes between two looks is beyond the limit.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

from tppo_rl.rollout.scoring_frames import PollingSocket

WATCH_S = 0.05
"""Seconds between two looks at the memory of workers that have a job."""
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from tppo_rl.rollout.scoring_worker import main; main({socket}, {lifeline})"
)
_PAGE = os.sysconf("SC_PAGE_SIZE")
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class WorkerProcess:
    """A process that was started; it says `Ready` when it can work.

    Args:
        setup: Frame of the `Setup`.
    """

    def __init__(self, setup: bytes) -> None:
        own, other = socket.socketpair()
        lifeline, self._lifeline = os.pipe()
        path = [os.path.abspath(entry) for entry in sys.path]
        program = _PROGRAM.format(path=path, socket=other.fileno(), lifeline=lifeline)
        # Several workers beside an engine must not compute on every core each.
        threads = {name: os.environ.get(name, "1") for name in _THREADS}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                stdin=subprocess.DEVNULL,
                pass_fds=(other.fileno(), lifeline),
                start_new_session=True,
                env=os.environ | threads,
            )
        finally:
            other.close()
            os.close(lifeline)
        self.started = time.monotonic()
        self._socket = PollingSocket(own)
        self._socket.send(setup)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether the process is gone, or sends what nobody can read."""
        return self._socket.ended

    @property
    def has_more_to_send(self) -> bool:
        """Whether part of a message waits for the worker to read."""
        return self._socket.has_more_to_send

    def fileno(self) -> int:
        """Descriptor of the socket, for `select`."""
        return self._socket.fileno()

    def send(self, frame: bytes) -> None:
        """Sends a message, without waiting."""
        self._socket.send(frame)

    def poll(self) -> list[Any]:
        """Returns the messages that have come."""
        return self._socket.poll()

    def resident_bytes(self) -> int:
        """Resident memory, bytes; 0 where the system does not say, or where the process is gone."""
        try:
            with open(f"/proc/{self._process.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * _PAGE
        except (OSError, IndexError, ValueError):
            return 0

    def kill(self) -> None:
        """Kills the process and all of its group, at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close(self) -> str:
        """Kills the process, releases what belongs to it, and says in words how it ended."""
        if self._process.poll() is None:
            # One that closed its socket is about to end, and then its exit code says more than our signal.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(0.1 if self._socket.ended else 0)
        self.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._socket.close()
        with suppress(OSError):
            os.close(self._lifeline)
        code = self._process.returncode
        if code is None or code >= 0:
            return f"the worker process ended with exit code {code}"
        name = signal.Signals(-code).name
        hint = ", as when the machine is out of memory" if name == "SIGKILL" else ""
        return f"the worker process was ended by {name}{hint}"
