"""Reads the last number of a text exactly: separators, fractions, powers of ten, percent, currency, signs.

The time is linear in the length of the text. A number with more than `MAX_DIGITS` digits, or an exponent beyond it, is not
read, so that no text can ask for a number that fills the memory (`10^10^10`).
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

MAX_DIGITS = 400
"""Most digits of a number, and largest exponent of ten."""
_MAX_POWER = 64
"""Largest exponent of other bases."""

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_SUPERSCRIPT_RUN = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_SEPARATED = re.compile(r"(?<=[0-9])[\u00a0\u2009\u202f'\u2019_](?=[0-9]{3}(?![0-9]))")
_PLAIN = {
    "\u2212": "-",  # minus sign
    "\u2013": "-",  # en dash
    "\u2044": "/",  # fraction slash
    "\u2215": "/",  # division slash
    "\u00a0": " ",
    "\u2009": " ",
    "\u202f": " ",
    "\u00d7": "\\times",
}
_LATEX = (("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\;", " "), ("\\$", "$"), ("\\%", "%"))

# Quantifiers on digits are possessive: no text makes the search go back over them.
_DIGITS = r"(?:(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?|\.[0-9]++)"
_TERM = re.compile(
    rf"""
    (?: (?<![0-9A-Za-z)\]}}%]) (?P<sign>[-+]) )?
    (?: [$€£¥₹](?P<inner_sign>-)? )? (?<![A-Za-z0-9_.])
    (?:
        (?P<fraction_whole>[0-9]{{1,9}}[ ]?)? \\[dt]?frac
            (?: \{{ (?P<fraction_sign>-?) (?P<fraction_top>{_DIGITS}) \}} \{{ (?P<fraction_bottom>{_DIGITS}) \}}
              | (?P<short_top>[0-9]) (?P<short_bottom>[0-9]) )
      | (?P<mixed_whole>[0-9]{{1,9}})[ ] (?P<mixed_top>[0-9]{{1,9}})/(?P<mixed_bottom>[0-9]{{1,9}}) (?![0-9/])
      | (?P<number>{_DIGITS}) (?: [eE](?P<exponent>[-+]?[0-9]++) )?
        (?:
            [ ]?(?:\*|x|\\times|\\cdot)[ ]?10[ ]?(?:\^|\*\*)[ ]?[{{(]?(?P<ten>[-+]?[0-9]++)[)}}]?
          | [ ]?/[ ]? (?P<bottom>{_DIGITS})
        )?
    )
    (?P<powers>(?:[ ]?(?:\^|\*\*)[ ]?[{{(]{{0,2}}[-+]?[0-9][0-9.,]*+[)}}]{{0,2}})++)?
    (?P<percent>[ ]?(?:%|percent\b|per[ ]cent\b))?
    """,
    re.VERBOSE,
)
_POWER = re.compile(r"[-+]?[0-9][0-9.,]*")


@dataclass(frozen=True)
class Number:
    """A number of a text."""

    value: Fraction
    """As written: 50 for `50%`."""
    percent: bool = False
    """Whether a percent sign follows."""

    def equals(self, other: Number, *, tolerance: float = 0.0, relative_tolerance: float = 0.0) -> bool:
        """Whether the numbers are equal; where one alone has a percent sign, `50%` equals 50 and 0.5.

        Args:
            other: The reference.
            tolerance: Largest difference.
            relative_tolerance: Largest difference as a fraction of the reference; it is added to `tolerance`.
        """
        scales: tuple[Fraction, ...] = (Fraction(1),)
        if self.percent != other.percent:
            scales = (Fraction(1), Fraction(1, 100) if self.percent else Fraction(100))
        allowed = Fraction(tolerance) + Fraction(relative_tolerance) * abs(other.value)
        return any(abs(self.value * scale - other.value) <= allowed for scale in scales)


def last_number(text: str) -> Number | None:
    """Returns the last number of a text; None where there is none, or where the last one cannot be read."""
    term = None
    for term in _TERM.finditer(_plain(text)):  # noqa: B007 (the last one counts)
        pass
    return None if term is None else _value(term)


def _plain(text: str) -> str:
    """Writes digits, minus signs, powers and LaTeX's spacing in one way."""
    if not text.isascii():
        text = _SEPARATED.sub("", text)
        text = _SUPERSCRIPT_RUN.sub(lambda run: "^" + run.group().translate(_SUPERSCRIPTS), text)
        text = "".join(character if character.isascii() else _ascii(character) for character in text)
    else:
        text = _SEPARATED.sub("", text)
    for written, plain in _LATEX:
        text = text.replace(written, plain)
    return text


def _ascii(character: str) -> str:
    digit = unicodedata.decimal(character, None)
    if digit is not None:
        return str(digit)
    if unicodedata.decomposition(character).startswith("<fraction>"):
        return " " + unicodedata.normalize("NFKC", character).replace("\u2044", "/")
    return _PLAIN.get(character, character)


def _value(term: re.Match[str]) -> Number | None:
    """Returns the number of a match; None where it is too large, or divides by 0."""
    found = term.groupdict()
    if found["fraction_top"] or found["short_top"]:
        top, bottom = found["fraction_top"] or found["short_top"], found["fraction_bottom"] or found["short_bottom"]
        value = _divided(top, bottom, found["fraction_whole"])
        value = -value if value is not None and found["fraction_sign"] else value
    elif found["mixed_whole"]:
        value = _divided(found["mixed_top"], found["mixed_bottom"], found["mixed_whole"])
    else:
        value = _scaled(found["number"], found["exponent"] or found["ten"])
        if found["bottom"]:
            bottom = _scaled(found["bottom"], None)
            value = value / bottom if value is not None and bottom else None
    if value is not None and found["powers"]:
        value = _raised(value, _POWER.findall(found["powers"]))
    if value is None:
        return None
    negative = (found["sign"] == "-") != bool(found["inner_sign"])
    return Number(-value if negative else value, bool(found["percent"]))


def _scaled(digits: str, exponent: str | None) -> Fraction | None:
    if len(digits) > MAX_DIGITS or (exponent and (len(exponent) > 5 or abs(int(exponent)) > MAX_DIGITS)):
        return None
    return Fraction(digits.replace(",", "")) * Fraction(10) ** int(exponent or 0)


def _divided(top: str, bottom: str, whole: str | None) -> Fraction | None:
    above, below = _scaled(top, None), _scaled(bottom, None)
    if above is None or not below:
        return None
    return (Fraction(whole.strip()) if whole else 0) + above / below


def _raised(base: Fraction, exponents: list[str]) -> Fraction | None:
    """Returns a power with one small integer as exponent; None for towers and all else."""
    if len(exponents) != 1 or len(exponents[0]) > 3 or not re.fullmatch(r"[-+]?[0-9]+", exponents[0]):
        return None
    exponent = int(exponents[0])
    if abs(exponent) > _MAX_POWER or (exponent < 0 and not base):
        return None
    size = max(base.numerator.bit_length(), base.denominator.bit_length())
    return base**exponent if size * abs(exponent) <= 4 * MAX_DIGITS else None
