"""Whether a CPU gains by half precision: without instructions for it, products take several times as long as in float32."""

from __future__ import annotations

import logging
from functools import cache

import torch

from tppo_rl.kernels.timing import least_seconds

_ROWS, _WIDTH = 512, 256

_logger = logging.getLogger(__name__)


def warn_of_slow_dtype(dtype: torch.dtype) -> None:
    """Logs a warning where this CPU is faster in float32 than in `dtype`."""
    if dtype not in (torch.bfloat16, torch.float16):
        return
    slowdown = half_precision_slowdown(dtype, torch.get_num_threads())
    if slowdown > 1.0:
        name = str(dtype).removeprefix("torch.")
        _logger.warning(
            "dtype=%r: this CPU takes %.1f times as long for it as for float32; set dtype to 'float32'", name, slowdown
        )


@cache
def half_precision_slowdown(dtype: torch.dtype, num_threads: int) -> float:
    """Returns the time of a matrix product in `dtype` by that in float32 on this machine's CPU; takes some milliseconds.

    Args:
        dtype: torch.bfloat16 or torch.float16.
        num_threads: torch threads that are set; a key of the cache.
    """
    del num_threads
    return _product_seconds(dtype) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    inputs, weight = torch.zeros(_ROWS, _WIDTH, dtype=dtype), torch.zeros(_WIDTH, _WIDTH, dtype=dtype)
    return least_seconds(lambda: torch.mm(inputs, weight))
