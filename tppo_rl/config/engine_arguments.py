"""Values of vLLM's arguments, checked by its own annotations: what it refuses itself ends in a traceback of its processes."""

from __future__ import annotations

import math
from collections.abc import Set
from typing import Any

from tppo_rl.core.errors import OptionError

_KINDS = {"bool": "true or false", "int": "a whole number", "float": "a number", "str": "a text", "None": "null"}
_AT_LEAST_ONE = frozenset(
    {
        "block_size", "kv_cache_gib", "kv_cache_memory_bytes", "max_logprobs", "max_model_len", "max_num_active_seqs",
        "max_num_batched_tokens", "max_num_scheduled_tokens", "max_num_seqs", "num_gpu_blocks_override", "tensor_parallel_size",
    }
)  # fmt: skip
_OWN = {"kv_cache_gib": frozenset({"int"}), "multiprocessing": frozenset({"bool"})}
"""Types of our own keys; vLLM reads the size of its cache on a CPU as a whole number of GiB."""


def check_engine_argument(key: str, value: Any, kinds: Set[str]) -> None:
    """Checks type and size of an argument of the engine.

    Args:
        key: Of the option `engine`.
        value: As the user gave it.
        kinds: Names of the types that vLLM says it takes; empty where it takes others than plain values.

    Raises:
        OptionError: another type, or a number that cannot be meant.
    """
    kinds = kinds or _OWN.get(key, frozenset())
    where = f"engine.{key}={value!r}"
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise OptionError(f"{where}: must be {' or '.join(_KINDS[kind] for kind in sorted(kinds))}; correct it")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return
    if not math.isfinite(value):
        raise OptionError(f"{where}: must be a finite number; correct it")
    if key in _AT_LEAST_ONE and value < 1:
        raise OptionError(f"{where}: must be 1 or more; correct it, or remove the key")
    if key == "gpu_memory_utilization" and not 0 < value <= 1:
        raise OptionError(f"{where}: is a share of the GPU's memory; give a number above 0, at most 1")


def _is(value: Any, kind: str) -> bool:
    if kind == "None":
        return value is None
    if isinstance(value, bool):
        return kind == "bool"
    return isinstance(value, {"bool": bool, "int": int, "float": int | float, "str": str}[kind])
