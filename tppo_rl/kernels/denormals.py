"""Numbers too small for their full precision, below 1e-38 in float32, taken as 0.

Sharp attention is full of them, in its weights and their gradients, and a CPU computes with them many times as slowly as with
others. The engines' kernels do not meet them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_subnormals() -> Iterator[None]:
    """Takes subnormal numbers as 0 in this thread and in those that it starts; also a decorator.

    Threads of torch's own that run already go on as they were, so what sets up the models should do it as well.
    """
    before = is_flushing()
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def is_flushing() -> bool:
    """Returns whether this thread takes subnormal numbers as 0."""
    return sys.float_info.min / 2 == 0
