"""Parts of the options' sections: fields with their meaning, conditions under which they are read, rules.

A section is a pydantic model in `tppo_rl.config.sections`. An option is written there once: `option` has its type, bounds,
default and meaning, and `check` of the same class refuses bad combinations. Everything else follows from it: YAML keys,
builder keywords, `tppo-rl options`, the docs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, NoReturn

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer

from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import PartSpec
from tppo_rl.core.reward_parts import RewardParts

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


class Condition(NamedTuple):
    """Condition under which an option is read."""

    words: str
    """Ends the sentence "is read only with …"."""
    holds: Callable[[Options], bool]


class Section(BaseModel):
    """Options that belong together; immutable."""

    # NaN passes every bound, and an infinite number makes losses or weights infinite.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, arbitrary_types_allowed=True, allow_inf_nan=False
    )

    def check(self, options: Options) -> None:
        """Refuses values of the section that do not go together with other options.

        Raises:
            OptionError: names key, value, reason and remedy.
        """


def option(
    default: Any, description: str, *, read_with: Condition | None = None, perturbable: bool = False, **bounds: Any
) -> Any:
    """A field of a section.

    Args:
        default: T-PPO's default; the files of other algorithms say what they change.
        description: Meaning and unit, for users.
        read_with: Condition under which it is read; None: always. An option that is changed and not read is refused.
        perturbable: Whether it may differ between the run that saved a checkpoint and the one that goes on from it. Other
            options shape the checkpoint itself, or say how its queued tokens were sampled.
        bounds: Bounds in pydantic's words, such as `ge=0`.
    """
    extra: Any = {"read_with": read_with, "perturbable": perturbable}
    return Field(default, description=description, json_schema_extra=extra, **bounds)


def refuse(key: str, value: Any, reason: str) -> NoReturn:
    """Refuses the value of an option.

    Raises:
        OptionError: always.
    """
    raise OptionError(f"{key}={value!r}: {reason}")


def _as_tuple(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("give two numbers, such as [0, 1]")
    return tuple(value)


Pair = Annotated[tuple[float, float], BeforeValidator(_as_tuple)]
"""Two numbers; in YAML they are a list."""

Part = Annotated[PartSpec, BeforeValidator(PartSpec.parse), PlainSerializer(PartSpec.flat, return_type=Any)]
"""A registered name, `module:object`, or a mapping of `type` and arguments (see `tppo_rl.core.registry`)."""

Parts = Annotated[RewardParts, BeforeValidator(RewardParts.parse), PlainSerializer(RewardParts.flat, return_type=Any)]
"""One part or a list of weighted ones (see `tppo_rl.core.reward_parts`)."""
