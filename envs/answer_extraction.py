"""Finds the answer in a response: all of it, the last box, the last line, after a marker, or by a pattern.

    extract: all                      the whole response
    extract: boxed                    inside of the last \\boxed{…}
    extract: last_line                the last line that is not empty
    extract: last_number              the last number
    extract: {after: "####"}          what follows the last marker, to the end of its line
    extract: {pattern: "answer: (.*)"}    the first group (or all) of the pattern's last match

No extraction takes longer than in proportion to the response, but for a pattern of the user, which gets `PATTERN_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import regex
from pydantic import BeforeValidator

PATTERN_SECONDS = 1.0
"""Longest search for a user's pattern in one response."""
_WHERE = ("all", "boxed", "last_line", "last_number")
_BOXES = ("\\boxed", "\\fbox")


class VerifierError(Exception):
    """A verifier could not say whether the response is right; this is not the same as wrong."""


@dataclass(frozen=True)
class Extraction:
    """Where the answer of a response stands."""

    where: str = "all"
    """`all`, `boxed`, `last_line`, `last_number`, `after` or `pattern`."""
    argument: str = ""
    """The marker or the pattern."""

    @classmethod
    def parse(cls, value: Any) -> Extraction:
        """Reads an extraction as options have it.

        Raises:
            ValueError: no such extraction, or a pattern that is none.
        """
        if isinstance(value, Extraction):
            return value
        if isinstance(value, str) and value in _WHERE:
            return cls(value)
        if isinstance(value, Mapping) and len(value) == 1:
            ((where, argument),) = value.items()
            if where in ("after", "pattern") and isinstance(argument, str) and argument:
                if where == "pattern":
                    _compiled(argument)
                return cls(where, argument)
        raise ValueError(
            f"must be {', '.join(_WHERE)}, a mapping {{after: marker}}, or a mapping {{pattern: expression}}"
        )

    def __call__(self, response: str) -> str | None:
        """Returns the answer of a response; None where it gives none.

        Raises:
            VerifierError: the search for a user's pattern took too long.
        """
        if self.where == "boxed":
            return last_boxed(response)
        if self.where == "last_line":
            return next((line.strip() for line in reversed(response.splitlines()) if line.strip()), None)
        if self.where == "after":
            _, marker, rest = response.rpartition(self.argument)
            return (rest.strip().splitlines() or [""])[0].strip() if marker else None
        return _last_match(self.argument, response) if self.where == "pattern" else response


Extract = Annotated[Extraction, BeforeValidator(Extraction.parse)]
"""An extraction as an argument: checked and parsed before the run starts."""


def last_boxed(response: str) -> str | None:
    """Returns the inside of the last box, braces balanced; None where there is none or where it is not closed."""
    start, box = max((response.rfind(box), box) for box in _BOXES)
    if start < 0:
        return None
    rest = response[start + len(box) :].lstrip()
    if not rest.startswith("{"):
        return (rest.split() or [""])[0].rstrip("$.,") or None
    depth = 0
    for position, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:position].strip()
    return None


def _compiled(pattern: str) -> Any:
    try:
        return regex.compile(pattern, regex.DOTALL)
    except regex.error as error:
        raise ValueError(f"is no regular expression: {error}") from None


def _last_match(pattern: str, response: str) -> str | None:
    match = None
    try:
        for match in _compiled(pattern).finditer(response, timeout=PATTERN_SECONDS):  # noqa: B007 (the last one counts)
            pass
    except TimeoutError:
        raise VerifierError(f"the pattern {pattern!r} took more than {PATTERN_SECONDS:g} s on a response") from None
    if match is None:
        return None
    return str(match[1] or "") if match.re.groups else str(match[0])
