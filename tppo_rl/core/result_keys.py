"""Keys of results, which `stop`, schedulers and searchers read; `a/b` is key `b` of the mapping `a`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.metric_table import METRICS

HELDOUT_KEYS = tuple(
    f"heldout_latest/{how}/{what}"
    for how in ("sampled", "greedy")
    for what in ("accuracy", "return_mean", "response_length_mean")
)
"""Keys of the last held-out evaluation."""
METRIC_KEYS = tuple(metric.name for metric in METRICS if not metric.name.startswith("heldout/"))
"""Keys of the last iteration's metrics. A metric without a value in an iteration is absent."""
_OF_RLLIB = (
    "env_runners/episode_len_mean",
    "env_runners/episode_return_mean",
    "iterations_since_restore",
    "num_env_steps_sampled_lifetime",
    "time_since_restore",
    "time_this_iter_s",
    "time_total_s",
    "training_iteration",
)
RESULT_KEYS = (*_OF_RLLIB, *HELDOUT_KEYS, *METRIC_KEYS)
"""Keys that every run has. A user's own losses and callbacks may add to them."""
_ROOTS = {key.partition("/")[0] for key in RESULT_KEYS if "/" in key} | {
    "evaluation", "fault_tolerance", "learners", "num_training_step_calls_per_iteration", "perf", "rewards", "run", "timers",
    "timestamp",
}  # fmt: skip
"""Mappings of results, most of whose keys have no name here, and further numbers."""
_MISSPELLED = 0.8
"""Similarity in [0, 1] from which an unknown key counts as a misspelled one."""


def lookup(result: Mapping[str, Any], path: str) -> Any:
    """Returns the value at `a/b/c` in nested results; None if there is none."""
    value: Any = result
    for part in path.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def check_spelling(option: str, value: Any, key: str, *, may_be_new: bool = True) -> None:
    """Refuses a misspelled key of results, and one that no result has.

    Args:
        option: Option that gives the key, for messages.
        value: Value of that option, for messages.
        key: The key.
        may_be_new: Whether code of the user's may add keys to results.

    Raises:
        OptionError: the key is unknown, and similar to a known one or not to be had.
    """
    if key in RESULT_KEYS:
        return
    close = difflib.get_close_matches(key, RESULT_KEYS, n=3, cutoff=_MISSPELLED)
    if close:
        raise OptionError(f"{option}={value!r}: results have no such key; did you mean {' or '.join(close)}?")
    if not may_be_new and key.partition("/")[0] not in _ROOTS:
        raise OptionError(
            f"{option}={value!r}: results have no such key; take one of {', '.join(_OF_RLLIB)}, or a metric of docs/metrics.md"
        )


def check_limits(result: Mapping[str, Any], stop: Mapping[str, float], where: str) -> None:
    """Checks on the first result that results have every key of `stop`; a limit on another key would never end the run.

    Args:
        result: Result of the first iteration.
        stop: Limits by key.
        where: Name of `stop`, for the message.

    Raises:
        OptionError: a key is not in the result, and is no known metric (some of these come later).
    """
    for key, limit in stop.items():
        if key in RESULT_KEYS or lookup(result, key) is not None:
            continue
        numbers = sorted(str(name) for name, value in result.items() if isinstance(value, int | float))
        raise OptionError(
            f"{where}.{key}={limit!r}: results have no such key; they have {', '.join(numbers)}, and the metrics of "
            "docs/metrics.md"
        )
