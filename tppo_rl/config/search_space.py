"""Search spaces in YAML: `{grid_search: [8, 16]}`, `{loguniform: [1e-5, 1e-3]}`, in the words of `ray.tune`.

A mapping whose only key is such a word stands for the values of an option. The checks need no Ray: all values of a list, or
the smallest and the largest of a range, are checked like any other value.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tppo_rl.core.errors import OptionError

GRID = "grid_search"
CHOICE = "choice"
RANGES = {
    "uniform": ("lower", "upper"),
    "quniform": ("lower", "upper", "q"),
    "loguniform": ("lower", "upper"),
    "qloguniform": ("lower", "upper", "q"),
    "randint": ("lower", "upper"),
    "qrandint": ("lower", "upper", "q"),
    "lograndint": ("lower", "upper"),
    "qlograndint": ("lower", "upper", "q"),
}
"""Words of `ray.tune` that draw from a range, with their arguments. Words without bounds (`randn`) are left out: in the
middle of a sweep they could draw a value that an option refuses."""
WORDS = (GRID, CHOICE, *RANGES)
_MOST_POINTS = 512
_MOST_CHECKED = 1000
"""Grid points, and values of lists, that an experiment may have; each is checked before anything starts."""


_MOST_SHOWN = 200
"""Characters of a value in a message."""


class Axis(NamedTuple):
    """One option that takes several values."""

    path: tuple[str, ...]
    word: str
    argument: Any

    @property
    def key(self) -> str:
        """The option's name."""
        return ".".join(map(str, self.path))

    @property
    def is_grid(self) -> bool:
        """Whether all values are tried; otherwise values are drawn."""
        return self.word == GRID

    def values(self) -> list[Any]:
        """All values of a list; the smallest and the largest of a range."""
        if self.word in (GRID, CHOICE):
            return list(self.argument)
        lower, upper = self.argument[:2]
        if self.word in ("randint", "lograndint") or (self.word in ("qrandint", "qlograndint") and self._step == 1):
            return [int(lower), int(upper) - 1]
        return [int(lower), int(upper)] if "randint" in self.word else [float(lower), float(upper)]

    def bounds(self) -> tuple[float, float] | None:
        """Smallest and largest value of a range; None for a list."""
        return None if self.word in (GRID, CHOICE) else (self.values()[0], self.values()[1])

    @property
    def _step(self) -> float:
        return float(self.argument[2])


def axes(options: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[Axis]:
    """The options that take several values, nested ones too, in the order of the mapping."""
    for key, value in options.items():
        if isinstance(value, Mapping):
            if len(value) == 1 and next(iter(value)) in WORDS:
                ((word, argument),) = value.items()
                yield Axis((*path, key), word, argument)
            else:
                yield from axes(value, (*path, key))


def shortened(value: Any) -> str:
    """Returns a value as text, of a long one the beginning."""
    text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def check_axis(axis: Axis) -> None:
    """Checks that a word has the arguments that it needs.

    Raises:
        OptionError: an empty list, or bad bounds.
    """
    key = f"{axis.key}.{axis.word}={shortened(axis.argument)}"
    if axis.word in (GRID, CHOICE):
        if not isinstance(axis.argument, list) or not axis.argument:
            raise OptionError(f"{key}: must be a list of at least one value")
        return
    names = RANGES[axis.word]
    if (
        not isinstance(axis.argument, list)
        or len(axis.argument) != len(names)
        or not all(map(_is_number, axis.argument))
    ):
        raise OptionError(f"{key}: must be the numbers [{', '.join(names)}]")
    if not all(map(math.isfinite, axis.argument)):
        raise OptionError(f"{key}: must be finite numbers; correct them")
    lower, upper, *step = axis.argument
    if not lower < upper:
        raise OptionError(f"{key}: the lower bound must be below the upper one; exchange or move them")
    if "log" in axis.word and lower <= 0:
        raise OptionError(f"{key}: a logarithmic range begins above 0; raise the lower bound")
    if "randint" in axis.word and not all(isinstance(number, int) for number in axis.argument):
        raise OptionError(f"{key}: draws whole numbers, so its bounds must be whole; round them")
    if step and step[0] <= 0:
        raise OptionError(f"{key}: values are multiples of q, which must be above 0")


def check_words(options: Mapping[str, Any], mappings: Iterable[str]) -> None:
    """Refuses a misspelled search word, which would pass as the value of its option.

    Args:
        options: Options by key.
        mappings: Options whose values may be any mapping.

    Raises:
        OptionError: an unknown word; the message names the word that is probably meant.
    """
    for key in options.keys() - set(mappings):
        value = options[key]
        if isinstance(value, Mapping) and len(value) == 1 and next(iter(value)) not in WORDS:
            ((word, argument),) = value.items()
            close = difflib.get_close_matches(str(word), WORDS, n=1)
            hint = f", did you mean {close[0]}?" if close else ""
            raise OptionError(f"{key}.{word}={argument!r}: unknown search word{hint}; known are {', '.join(WORDS)}")


def grid_points(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields the options of every grid point; random values stay as they are written."""
    return _products(options, [axis for axis in axes(options) if axis.is_grid])


def check_size(options: Mapping[str, Any], where: str) -> None:
    """Refuses a search space of which not everything can be checked.

    Args:
        options: Options by key, whose axes were checked.
        where: Name of the experiment's config in messages.

    Raises:
        OptionError: too many grid points, or too many values in lists.
    """
    found = list(axes(options))
    points = math.prod(len(axis.argument) for axis in found if axis.is_grid)
    values = sum(len(axis.values()) for axis in found)
    if max(points, values) > _MOST_CHECKED:
        largest = max(found, key=lambda axis: len(axis.values()))
        raise OptionError(
            f"{where}.{largest.key}.{largest.word}={shortened(largest.argument)}: with it the search space has {points:,} grid points and "
            f"{values:,} values, and each is checked before a run; at most {_MOST_CHECKED:,}: draw from a range, such as "
            "{uniform: [0, 1]}, or make several experiments"
        )


def points_to_check(options: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yields options without axes that stand for all trials: every grid point with both ends of every range.

    If these are too many: every grid point with the first random values, and each further random value once.
    """
    found = list(axes(options))
    count = 1
    for axis in found:
        count *= len(axis.values())
    if count <= _MOST_POINTS:
        yield from _products(options, found)
        return
    first = put_all(options, {axis.path: axis.values()[0] for axis in found if not axis.is_grid})
    yield from grid_points(first)
    first = put_all(first, {axis.path: axis.values()[0] for axis in found if axis.is_grid})
    for axis in found:
        for value in [] if axis.is_grid else axis.values()[1:]:
            yield put_all(first, {axis.path: value})


def put(target: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a nested key.

    Raises:
        OptionError: a parent of the key is no mapping.
    """
    for part in path[:-1]:
        inner = target.setdefault(part, {})
        if not isinstance(inner, dict):
            raise OptionError(
                f"{'.'.join(path)}={value!r}: {part} holds {inner!r}, which has no keys; set {part} to a mapping first"
            )
        target = inner
    target[path[-1]] = value


def put_all(options: Mapping[str, Any], values: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    """Returns a copy of the options with the values at their paths."""
    result = copy_mapping(options)
    for path, value in values.items():
        put(result, path, value)
    return result


def copy_mapping(value: Any) -> Any:
    """Returns a copy of nested mappings; their other values are shared."""
    return {key: copy_mapping(inner) for key, inner in value.items()} if isinstance(value, Mapping) else value


def _products(options: Mapping[str, Any], chosen: Sequence[Axis]) -> Iterator[dict[str, Any]]:
    for values in itertools.product(*(axis.values() for axis in chosen)):
        yield put_all(options, {axis.path: value for axis, value in zip(chosen, values, strict=True)})


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
