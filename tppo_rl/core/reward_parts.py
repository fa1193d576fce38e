"""The option `rewards`: one part, or a list of weighted ones.

    rewards: zero_one
    rewards: ./r.py:accuracy
    rewards: [{type: ./r.py:accuracy, weight: 1.0}, {type: format, weight: 0.2, pattern: "<answer>.*</answer>"}]

`weight` (default 1) and `name` belong to the list, all other keys are arguments of the part. The name of a part is that of its
object; of two parts with one name the second one gets `_2`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import PartSpec

ENVIRONMENT = "environment"
ALL_FAILURES = "all"
NOTHING_APPLIES = "nothing_applies"
RESERVED_NAMES = frozenset({ALL_FAILURES, NOTHING_APPLIES})
"""Names of failures that no part has."""

_OWN_KEYS = ("weight", "name")
_NAME = re.compile(r"[A-Za-z_][\w-]*")


@dataclass(frozen=True)
class RewardPart:
    """A part of the reward."""

    spec: PartSpec
    weight: float = 1.0
    name: str = ""
    """Name of its metrics; distinct in a list."""
    given: frozenset[str] = frozenset()
    """Which of `weight` and `name` the user gave."""

    def flat(self) -> str | dict[str, Any]:
        """The part as a user writes it."""
        own = {key: getattr(self, key) for key in _OWN_KEYS if key in self.given}
        return {"type": self.spec.name, **own, **self.spec.arguments} if own else self.spec.flat()


@dataclass(frozen=True)
class RewardParts:
    """The parts of the reward, at least one."""

    parts: tuple[RewardPart, ...]
    listed: bool = False
    """Whether the user gave a list."""

    def __iter__(self) -> Iterator[RewardPart]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)

    @classmethod
    def parse(cls, value: Any) -> RewardParts:
        """Reads one part or a list of them.

        Raises:
            ValueError: the value is neither, a weight or a name is bad, two parts were given one name, or one part is given twice.
        """
        if isinstance(value, RewardParts):
            return value
        if not isinstance(value, list | tuple):
            return cls(_with_names([_part(value)]))
        if not value:
            raise ValueError("the list is empty; give at least one part, or leave `rewards` out")
        return cls(_with_names([_part(one) for one in value]), listed=True)

    def flat(self) -> Any:
        """The value as a user writes it."""
        return [part.flat() for part in self.parts] if self.listed else self.parts[0].flat()

    @property
    def is_environment(self) -> bool:
        """Whether the environment's rewards are all that there is, unweighted."""
        return len(self.parts) == 1 and self.parts[0].spec.name == ENVIRONMENT and self.parts[0].weight == 1

    def message(self, index: int, error: Exception) -> OptionError:
        """The error of a part with its place in the list."""
        text = str(error)
        return OptionError(text.replace("rewards", f"rewards[{index}]", 1) if self.listed else text)


def _part(value: Any) -> RewardPart:
    if not isinstance(value, Mapping):
        spec = PartSpec.parse(value)
        return RewardPart(spec, name=_own_name(spec))
    spec = PartSpec.parse({key: given for key, given in value.items() if key not in _OWN_KEYS})
    weight, name = value.get("weight", 1.0), value.get("name", _own_name(spec))
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise ValueError(f"weight={weight!r} of {spec.name!r} must be a finite number")
    if spec.name == ENVIRONMENT and spec.arguments:
        raise ValueError(f"{ENVIRONMENT!r} takes no arguments but weight and name; remove {', '.join(spec.arguments)}")
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        reserved = " and ".join(sorted(RESERVED_NAMES))
        raise ValueError(f"name={name!r} must be letters, digits, _ and -, and not {reserved}")
    return RewardPart(spec, float(weight), name, frozenset(key for key in _OWN_KEYS if key in value))


def _own_name(spec: PartSpec) -> str:
    """The name of a part that has none: that of its object."""
    name = re.sub(r"[^\w-]", "_", spec.name.rpartition(":")[2])
    return f"{name}_1" if name in RESERVED_NAMES or not _NAME.fullmatch(name) else name


def _with_names(parts: Sequence[RewardPart]) -> tuple[RewardPart, ...]:
    """Numbers the parts that have one name, where the user gave none."""
    taken: set[str] = set()
    for index, part in enumerate(parts):
        for other in parts[:index]:
            if part.spec == other.spec and not ("name" in part.given and "name" in other.given):
                raise ValueError(
                    f"{part.spec.name!r} is given twice with the same arguments; give it once with the weight "
                    f"{part.weight + other.weight:g}, or give each a name"
                )
        if "name" in part.given:
            if part.name in taken:
                raise ValueError(f"name={part.name!r} is given to two parts; give each a name of its own")
            taken.add(part.name)
    named = []
    for part in parts:
        name, number = part.name, 1
        while "name" not in part.given and name in taken:
            number += 1
            name = f"{part.name}_{number}"
        taken.add(name)
        named.append(RewardPart(part.spec, part.weight, name, part.given))
    return tuple(named)
