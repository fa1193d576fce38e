"""Resident memory of this process, and the environment in which malloc wastes least of it."""

from __future__ import annotations

import os
from pathlib import Path

MALLOC_TUNABLES = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"}
"""Variables of a process that trains on a CPU; glibc reads them when a program starts.

torch asks for aligned memory, so glibc cuts a sliver off each end of a block. While slivers lie in its caches for small blocks
they are not joined with the block again when that is freed, and the hole is too small for the next tensor of the same size.
"""


def process_memory(field: str) -> int:
    """Bytes of this process: "VmRSS" now, "VmHWM" at most so far; 0 where the system does not say.

    `getrusage` would not do: its maximum counts the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    sizes = [line for line in lines if line.startswith(f"{field}:")]
    return int(sizes[0].split()[1]) * 1024 if sizes else 0


def spare_freed_blocks() -> None:
    """Gives `MALLOC_TUNABLES` to all processes that this one starts, unless the user has set the variable."""
    for name, value in MALLOC_TUNABLES.items():
        os.environ.setdefault(name, value)
