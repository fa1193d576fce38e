"""Keys of results, which `stop`, schedulers and searchers look at; `a/b` is `b` of the mapping `a`."""

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
"""Of the last held-out evaluation."""
METRIC_KEYS = tuple(metric.name for metric in METRICS if not metric.name.startswith("heldout/"))
"""Of the last iteration. One that has no value in an iteration is absent."""
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
"""What every run has. Losses and callbacks of a user's own may add to them."""
_MISSPELLED = 0.8
"""Likeness from which on an unknown key is taken for a known one."""


def lookup(result: Mapping[str, Any], path: str) -> Any:
    """Value at `a/b/c` in nested results, None where there is none."""
    value: Any = result
    for part in path.split("/"):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def check_spelling(option: str, value: Any, key: str) -> None:
    """Checks that a key of results is not a misspelled one.

    Args:
        option: Where the key is given, for messages.
        value: What stands there.
        key: The key.

    Raises:
        OptionError: it is unknown, and much like a known one.
    """
    if key in RESULT_KEYS:
        return
    close = difflib.get_close_matches(key, RESULT_KEYS, n=3, cutoff=_MISSPELLED)
    if close:
        raise OptionError(f"{option}={value!r}: results have no such key; did you mean {' or '.join(close)}?")


def missing_keys(result: Mapping[str, Any], keys: Mapping[str, Any]) -> list[str]:
    """Those of the keys that neither this result has nor any later one will have for sure."""
    return [key for key in keys if key not in RESULT_KEYS and lookup(result, key) is None]
