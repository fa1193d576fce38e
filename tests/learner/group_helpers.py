"""Learners in processes of their own, and the memory that each takes. No Ray here: spawned processes import it."""

from __future__ import annotations

import ctypes
import gc
import shutil
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
OTHER_MEMORY = 12 * MIB
"""For all that a process takes beside weights: modules, buffers of the group, code that is loaded on the way."""


def run_learners(function: Callable[..., None], num_learners: int, folder: Path, *arguments: Any) -> list[Any]:
    """Calls `function(rank, *arguments)` in a process group of so many processes and returns what each has returned."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.multiprocessing.spawn(_in_group, args=(num_learners, str(folder), function, arguments), nprocs=num_learners)
    return [torch.load(folder / f"result.{rank}", weights_only=False) for rank in range(num_learners)]


def _in_group(rank: int, size: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size, timeout=timedelta(seconds=300)
    )
    torch.save(function(*arguments), f"{folder}/result.{rank}")
    # No learner goes while another one still needs it, and no sharded model outlives the group.
    gc.collect()
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


class Peak:
    """Most memory of this process's own meanwhile, above that at the beginning; pages of files are not counted."""

    def __enter__(self) -> Peak:
        gc.collect()
        # What has been freed is given back, so that it is not there to be used again unseen.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        self._before = self._most = own_memory()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    @property
    def bytes(self) -> int:
        return self._most - self._before

    def _watch(self) -> None:
        while not self._stop.wait(0.001):
            self._look()

    def _look(self) -> None:
        self._most = max(self._most, own_memory())


def own_memory() -> int:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1])
