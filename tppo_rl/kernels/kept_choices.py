"""Choices by measured time, kept for a machine: all processes of a run, and a run that is made again, have to compute alike."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch


def kept_choice(name: str, measure: Callable[[], bool]) -> bool:
    """Returns a choice as it was made first on this machine with this torch; where it cannot be kept, it is made anew.

    Args:
        name: Of the choice.
        measure: Makes it.
    """
    facts = f"{name} {torch.__version__} {_processor()}"
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    file = Path(cache, "tppo_rl", "choices", hashlib.sha256(facts.encode()).hexdigest()[:32])
    with suppress(OSError):
        return file.read_text(encoding="utf-8") == "True"
    choice = measure()
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        own = file.with_suffix(f".{os.getpid()}")
        own.write_text(str(choice), encoding="utf-8")
        with suppress(FileExistsError):
            # Whoever was first has chosen for all.
            os.link(own, file)
        own.unlink()
        return file.read_text(encoding="utf-8") == "True"
    return choice


def _processor() -> str:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line for line in lines if line.startswith("model name"))
    return platform.processor()
