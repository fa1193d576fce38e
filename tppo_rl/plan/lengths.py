"""Response lengths as a distribution over whole tokens, named or given as a histogram."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tppo_rl.core.errors import OptionError

NAMED = "lognormal:MEAN,SIGMA, uniform:LOW,HIGH or fixed:LENGTH"
_LONGEST_TAIL = 16
"""Cap of a lognormal distribution that none was given for, in means."""


@dataclass(frozen=True, eq=False)
class ResponseLengths:
    """Distribution of the length in tokens of a response; those that reach the cap end there."""

    probabilities: np.ndarray
    """float64 [cap + 1]: entry k is P(length = k); entry 0 is 0."""
    source: str
    """Where it comes from, for tables."""

    def __post_init__(self) -> None:
        weights = np.asarray(self.probabilities, np.float64)
        usable = weights.ndim == 1 and len(weights) > 1 and np.isfinite(weights).all() and weights.min(initial=0) >= 0
        if not usable or weights[0] or weights.sum() <= 0:
            raise OptionError(
                f"lengths of {self.source}: a histogram needs counts >= 0 of lengths from 1 on, not all 0"
            )
        longest = int(np.flatnonzero(weights)[-1])
        object.__setattr__(self, "probabilities", weights[: longest + 1] / weights.sum())

    @property
    def longest(self) -> int:
        """Largest length that has a probability, tokens."""
        return len(self.probabilities) - 1

    @property
    def mean(self) -> float:
        """Tokens."""
        return self.expected(np.arange(self.longest + 1))

    @property
    def survival(self) -> np.ndarray:
        """float64 [longest + 1]: entry t is P(length > t)."""
        return np.clip(1.0 - self._cumulative, 0.0, 1.0)

    @property
    def step(self) -> int:
        """Greatest common divisor of all lengths: windows of a multiple of it are cut at multiples of it alone."""
        return int(np.gcd.reduce(np.flatnonzero(self.probabilities)))

    def expected(self, values: np.ndarray) -> float:
        """Returns the mean of values [longest + 1] that belong to the lengths 0, 1, …"""
        return float(self.probabilities @ values)

    def any_longer(self, responses: int) -> np.ndarray:
        """Returns P(the longest of so many independent responses > t), float64 [longest + 1]."""
        return 1.0 - (1.0 - self.survival) ** responses

    def capped(self, cap: int) -> ResponseLengths:
        """Returns the distribution with everything above `cap` tokens moved to it."""
        if cap >= self.longest:
            return self
        kept = self.probabilities[: cap + 1].copy()
        kept[cap] += self.probabilities[cap + 1 :].sum()
        return ResponseLengths(kept, self.source)

    @cached_property
    def _cumulative(self) -> np.ndarray:
        return self.probabilities.cumsum()

    def draw(self, generator: np.random.Generator) -> int:
        """Returns the length of one response."""
        return min(int(np.searchsorted(self._cumulative, generator.random(), side="right")), self.longest)


def lognormal(mean: float, sigma: float, cap: int | None = None) -> ResponseLengths:
    """Returns a lognormal distribution, rounded to whole tokens and at least 1.

    Args:
        mean: Before the cap, tokens.
        sigma: Standard deviation of the logarithm; 1 is a long tail.
        cap: Longest response; None is 16 means.

    Raises:
        OptionError: a mean or sigma that is not above 0.
    """
    _positive("lognormal", mean=mean, sigma=sigma)
    from scipy.special import ndtr

    location = math.log(mean) - sigma**2 / 2
    cap = cap or math.ceil(_LONGEST_TAIL * mean)
    below = ndtr((np.log(np.arange(1, cap) + 0.5) - location) / sigma)
    probabilities = np.diff(below, prepend=0.0, append=1.0)
    return ResponseLengths(np.append(0.0, probabilities), f"lognormal:{mean:g},{sigma:g}")


def uniform(low: int, high: int) -> ResponseLengths:
    """Returns equal probabilities for all lengths from `low` to `high`, both included.

    Raises:
        OptionError: not 1 <= low <= high.
    """
    if not 1 <= low <= high:
        raise OptionError(f"lengths='uniform:{low},{high}' will not do: give 1 <= LOW <= HIGH, tokens")
    return ResponseLengths((np.arange(high + 1) >= low).astype(np.float64), f"uniform:{low},{high}")


def fixed(length: int) -> ResponseLengths:
    """Returns the distribution of responses that all have one length.

    Raises:
        OptionError: a length below 1.
    """
    if length < 1:
        raise OptionError(f"lengths='fixed:{length}' will not do: give at least 1 token")
    return ResponseLengths(np.eye(1, length + 1, length)[0], f"fixed:{length}")


def named_lengths(text: str, cap: int | None = None) -> ResponseLengths:
    """Returns the distribution of a text such as `lognormal:48,1.1`, capped.

    Args:
        text: One of `NAMED`.
        cap: Longest response, tokens; None leaves the distribution's own.

    Raises:
        OptionError: an unknown name, or numbers that it does not take.
    """
    makers: dict[str, tuple[Callable[..., ResponseLengths], tuple[type, ...]]] = {
        "lognormal": (lambda mean, sigma: lognormal(mean, sigma, cap), (float, float)),
        "uniform": (uniform, (int, int)),
        "fixed": (fixed, (int,)),
    }
    name, _, arguments = text.partition(":")
    if name not in makers:
        raise OptionError(f"lengths={text!r}: no such distribution; use {NAMED}")
    make, types = makers[name]
    parts = arguments.split(",")
    try:
        numbers = [kind(part) for kind, part in zip(types, parts, strict=True)]
    except ValueError:
        raise OptionError(f"lengths={text!r}: {arguments!r} is not what {name} takes; use {NAMED}") from None
    lengths = make(*numbers)
    return lengths if cap is None else lengths.capped(cap)


def _positive(name: str, **values: float) -> None:
    for key, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise OptionError(f"lengths={name!r}: {key}={value:g} will not do; give a number above 0")
