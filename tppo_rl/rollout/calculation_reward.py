"""A reward for the way to an answer: a right calculation with numbers of the question.

A small model that is right once in thirty answers learns little from answers alone. A right sum of the question's numbers is
the next best thing, and can be seen in the text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import regex

from tppo_rl.rollout.reward_terms import Term, text_of

_LONGEST = 4096
"""Characters of a response that are read."""
_NUMBER = r"\d{1,12}(?:,\d{3})*(?:\.\d{1,12})?"
_PRINTED = "\N{MINUS SIGN}\N{MULTIPLICATION SIGN}\N{DIVISION SIGN}"
_CALCULATION = regex.compile(
    rf"(?<![\d.])({_NUMBER})\s*([-+*/x{_PRINTED}])\s*[$]?({_NUMBER})\s*=\s*[$]?({_NUMBER})(?![\d])"
)
_NUMBERS = regex.compile(rf"(?<![\d.]){_NUMBER}")
_OPERATIONS: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "\N{MINUS SIGN}": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "x": lambda a, b: a * b,
    "\N{MULTIPLICATION SIGN}": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else math.inf,
    "\N{DIVISION SIGN}": lambda a, b: a / b if b else math.inf,
}


class Calculation(Term):
    """1 where the response writes a right calculation `a + b = c` with two numbers of the question, else 0.

    The operations are + - * / and their signs in print. A number that stands in the question once counts once.
    """

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Returns 1 or 0 for each response."""
        return [
            float(has_calculation(_question(prompt), text_of(completion)))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]


def has_calculation(question: str, response: str) -> bool:
    """Whether the response has a right calculation with two numbers of the question."""
    given = Counter(map(_value, _NUMBERS.findall(question)))
    for first, sign, second, result in _CALCULATION.findall(response[:_LONGEST]):
        a, b = _value(first), _value(second)
        known = not Counter((a, b)) - given
        if known and math.isclose(_OPERATIONS[sign](a, b), _value(result), rel_tol=1e-6, abs_tol=0.005):
            return True
    return False


def _question(prompt: Any) -> str:
    return prompt if isinstance(prompt, str) else str(prompt[-1]["content"])


def _value(number: str) -> float:
    return float(number.replace(",", ""))
