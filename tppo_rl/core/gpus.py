"""GPUs that a run may use: those that its user states, or those that NVIDIA's tool finds on this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

CARDS: dict[str, float] = {"a100": 80e9, "h100": 80e9, "h200": 141e9}
"""Bytes of cards by name, from NVIDIA's data sheets of the SXM modules (the A100 of 80 GB)."""
_STATED = re.compile(r"(?:(?:(\d+) *x *)?(\d+) *x *)?(?:([a-z]\w*)|(\d+(?:\.\d+)?) *gib)", re.IGNORECASE)
_EXAMPLES = "'h100', '8 x h100', '2 x 8 x h100' (2 nodes), or '2 x 24 GiB'"
_TOOL_S = 60.0
"""Seconds that NVIDIA's tool may take; it is slow where no process keeps the driver loaded."""


@dataclass(frozen=True)
class Gpus:
    """GPUs of one machine or of a cluster."""

    nodes: tuple[int, ...]
    """Number of GPUs of each node that has any, the largest first."""
    memory: int
    """Bytes of one GPU; of the smallest, where they differ."""
    source: str
    """Where this is known from, for users."""

    @property
    def total(self) -> int:
        """Number of GPUs of all nodes."""
        return sum(self.nodes)


def parse_gpus(text: str) -> Gpus:
    """Reads GPUs as a user states them.

    Args:
        text: `[[NODES x] NUMBER x] CARD`, where CARD is a name of `CARDS` or a size such as `24 GiB`.

    Raises:
        ValueError: another form, an unknown card, or none of them.
    """
    found = _STATED.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"must be a card, and how many of it, such as {_EXAMPLES}")
    nodes, number, name, size = found.groups()
    if name is not None and name.lower() not in CARDS:
        raise ValueError(f"no such card; give one of {', '.join(CARDS)}, or its size, such as {_EXAMPLES}")
    memory = CARDS[name.lower()] if name is not None else float(size) * 2**30
    counts = (int(number or 1),) * int(nodes or 1)
    if not sum(counts) or memory <= 0:
        raise ValueError(f"must be one GPU at least, such as {_EXAMPLES}")
    return Gpus(counts, int(memory), f"gpus: {text.strip()}")


def gpus_here() -> Gpus | None:
    """Returns the GPUs of this machine that `CUDA_VISIBLE_DEVICES` leaves visible; None: there are none.

    Torch is not asked: it would take some of a GPU's memory for this process.
    """
    tool = shutil.which("nvidia-smi")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if tool is None or (visible is not None and visible.strip() in ("", "-1")):
        return None
    command = [tool, "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        run = subprocess.run(command, capture_output=True, text=True, timeout=_TOOL_S, check=True)
        sizes = [int(line) for line in run.stdout.split()]
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    number = len(sizes) if visible is None else min(len(sizes), len(visible.split(",")))
    return Gpus((number,), min(sizes) * 2**20, "this machine") if number else None
