"""Checks of the option `rewards` before anything starts: objects, arguments, and the columns that they need."""

from __future__ import annotations

import inspect
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import REWARDS
from tppo_rl.core.reward_parts import RewardPart
from tppo_rl.core.reward_signature import COMPUTE_SCORE_ARGUMENTS, RESPONSE_ARGUMENTS, RUN_ARGUMENTS, RewardSignature

_WITHOUT_ARGUMENTS = frozenset({"environment", "zero_one", "plus_minus_one"})
"""Parts that are known to work, so that they need not be imported."""


def check_reward_parts(options: Options) -> None:
    """Checks that every part of the reward exists and takes its arguments.

    Raises:
        OptionError: names key, value and remedy; in a list the key has the part's place.
    """
    parts = options.rewards.rewards
    for index, part in enumerate(parts):
        if part.spec.name in _WITHOUT_ARGUMENTS and not part.spec.arguments:
            continue
        try:
            _check_names(part, REWARDS.find(part.spec.name))
            REWARDS.resolve(part.spec)
        except OptionError as error:
            raise parts.message(index, error) from None


def check_reward_columns(options: Options, env: Any) -> None:
    """Checks that the environment has the columns that the parts of the reward cannot do without.

    Args:
        options: Of the run.
        env: Its environment, which is reset where a part needs a column.

    Raises:
        OptionError: names the part, the column and what there is.
    """
    parts = options.rewards.rewards
    info: Any = None
    for index, part in enumerate(parts):
        if part.spec.name in _WITHOUT_ARGUMENTS:
            continue
        signature = RewardSignature.of(REWARDS.resolve(part.spec))
        if not signature.missing({}):
            continue
        if info is None:
            _, info = env.reset(seed=0)
        missing = signature.missing(info)
        if missing:
            there = ", ".join(sorted(map(str, info))) or "nothing"
            error = OptionError(
                f"rewards={part.spec.name!r}: needs {' and '.join(missing)}, and the environment's reset gives {there}; take one "
                "of these, or let reset's info have the column"
            )
            raise parts.message(index, error)


def _check_names(part: RewardPart, found: Any) -> None:
    """Refuses arguments that the run itself gives, and keys that could mean the part or its function."""
    if not callable(found):
        return
    signature = RewardSignature.of(found)
    for key in sorted(part.given & (signature.named - signature.required)):
        raise OptionError(
            f"rewards.{key}={getattr(part, key)!r}: is the {key} of the part, and {part.spec.name} has an argument of that name; "
            "give that argument another name"
        )
    if inspect.isclass(found):
        # A class takes its arguments before it is called, so they cannot be mixed up with those of the call.
        return
    given = COMPUTE_SCORE_ARGUMENTS if signature.is_compute_score else RESPONSE_ARGUMENTS | RUN_ARGUMENTS
    for key in sorted(given & part.spec.arguments.keys()):
        raise OptionError(f"rewards.{key}={part.spec.arguments[key]!r}: the run gives this argument; remove it")
