"""Checks of an experiment's name, limits and number of draws."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tppo_rl.config.search_space import axes, shortened
from tppo_rl.config.sweep_options import TuneOptions, has_own_code, name_and_arguments
from tppo_rl.core.errors import OptionError
from tppo_rl.core.result_keys import check_spelling

_LONGEST_NAME = 200
"""Bytes of a name; a file system takes 255, and Tune and the folders of earlier runs add to it."""


def check_name(name: Any) -> None:
    """Checks that an experiment's name does for the folder of its results.

    Raises:
        OptionError: it is no text, or no name of a folder.
    """
    if not isinstance(name, str):
        raise OptionError(f"experiment={name!r}: its name must be a text, which names its folder; write it in quotes")
    # Messages that name the folder would take brackets for markup.
    is_place = name in ("", ".", "..") or any(sign in name for sign in "/\\[]")
    if is_place or not name.isprintable() or len(name.encode()) > _LONGEST_NAME:
        raise OptionError(
            f"experiment={shortened(name)}: names the folder of its results; give a name without slashes and brackets, of at most "
            f"{_LONGEST_NAME} bytes"
        )


def check_stop(stop: Mapping[str, float], config: Mapping[str, Any], where: str) -> None:
    """Checks that results can reach every limit.

    Args:
        stop: Limits by key.
        config: Options of the experiment.
        where: Name of `stop` in messages.

    Raises:
        OptionError: a limit that is not finite, or a key that no result has.
    """
    may_be_new = has_own_code(config)
    for key, limit in stop.items():
        if not math.isfinite(limit):
            raise OptionError(f"{where}.{key}={limit!r}: must be a finite number; correct it, or remove the key")
        check_spelling(f"{where}.{key}", limit, key, may_be_new=may_be_new)


def check_draws(draws: int, tune_config: TuneOptions, options: Mapping[str, Any], name: str) -> None:
    """Refuses several draws where nothing is drawn: their trials would be the same.

    Args:
        draws: Number of draws.
        tune_config: The experiment's `tune_config`; PBT changes what was the same.
        options: With search words as they are written.
        name: Of the experiment.

    Raises:
        OptionError: no option has a range or a choice.
    """
    is_pbt = name_and_arguments(tune_config.scheduler)[0] == "pbt"
    if draws == 1 or is_pbt or any(not axis.is_grid for axis in axes(options)):
        return
    raise OptionError(
        f"{name}.num_samples={draws}: no option has a range to draw from, so all {draws} trials would be the same; set seeds to "
        f"{draws}, or give an option a range, such as lr: {{loguniform: [1e-5, 1e-3]}}"
    )
