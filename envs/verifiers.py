"""Verifiers: whether a response gives a known answer. 1.0 is right, 0.0 is wrong.

    verifier: numeric                                a registered name
    verifier: {type: numeric, tolerance: 0.01}       with arguments
    verifier: my_package.checks:mine                 a function of your own
    verifier: {type: ./checks.py:mine, strict: true}

A verifier is a function `(response: str, answer: str, **options) -> float`; the options are keyword-only parameters. Find one
with `find_verifier`, which checks the name and the arguments.

A response without an answer, and one whose answer cannot be read, are wrong. Where the verifier itself cannot do its work,
because the known answer cannot be read or because a library fails, it raises `VerifierError`: a failure is never a 0.
`exact`, `numeric` and `multiple_choice` take time in proportion to the response. `math` has no such bound and sets no alarm
signals, so it works in threads and actors: the caller brings the deadline.
"""

from __future__ import annotations

import importlib
import importlib.util
import math as _math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import PartSpec, Registry
from tppo_rl.envs.answer_extraction import Extract, Extraction, VerifierError, last_boxed
from tppo_rl.envs.numbers import last_number

__all__ = ["VERIFIERS", "Verifier", "VerifierError", "exact", "find_verifier", "math", "multiple_choice", "numeric"]

VERIFIERS = Registry(
    "verifier",
    {name: f"tppo_rl.envs.verifiers:{name}" for name in ("exact", "numeric", "math", "multiple_choice")},
)
"""Places of verifiers."""

_ALL = Extraction()
_MAX_MATH_CHARACTERS = 2_000
"""Longest answer that math-verify gets."""
_TOO_COSTLY = re.compile(
    r"[0-9]{401}"  # a number beyond all use
    r"|(?:\^|\*\*)[^-+=,;$\n]{0,200}(?:\^|\*\*)[^-+=,;$\n]{0,200}[0-9]"  # a tower of powers
    r"|(?:\^|\*\*)\s*[{(]*\s*-?[0-9]{4}"  # a large exponent
    r"|[)\]}]\s*(?:\^|\*\*)\s*[{(]*\s*(?:[3-9][0-9]|[0-9]{3})"  # a large power of a sum, which is multiplied out
    r"|[0-9]{4}[)}\s]*!"  # a large factorial
    r"|![)\]}\s]*!"  # a factorial of a factorial
    r"|(?:\^|\*\*)[^-+=,;$\n!]{0,40}!"  # a factorial of a power
    r"|binom[^0-9\n]{0,3}(?:[0-9]{4}|[2-9][0-9]{2})"  # a large binomial coefficient
)
_MAX_DEPTH = 50
"""Most brackets within one another."""


@dataclass(frozen=True)
class Verifier:
    """A verifier with its arguments."""

    name: str
    function: Callable[[str, str], float]

    def __call__(self, response: str, answer: str) -> float:
        """Returns 1.0 for a right response, 0.0 for a wrong one; a function of the user may say anything in between.

        Raises:
            VerifierError: the verifier raised, or did not return a number from 0 to 1. The message names the verifier.
        """
        if not isinstance(answer, str):
            answer = str(answer)
        try:
            verdict = self.function(response, answer)
        except VerifierError as error:
            raise VerifierError(f"{self.name}: {error}") from error
        except (Exception, SystemExit) as error:
            raise VerifierError(f"{self.name}: {type(error).__name__}: {error}"[:500]) from None
        try:
            value = float(verdict)
        except (TypeError, ValueError):
            value = _math.nan
        if isinstance(verdict, str) or not 0.0 <= value <= 1.0:
            raise VerifierError(f"{self.name}: must return a number from 0 to 1, got {verdict!r}"[:500])
        return value


def find_verifier(spec: Any) -> Verifier:
    """Returns the verifier that an option names, ready to be called.

    Args:
        spec: A registered name, `module:object`, `file.py:object`, or a mapping of `type` and the arguments.

    Raises:
        OptionError: no such verifier, arguments that it does not take, or a package that it needs is not installed; one
            message with key, value and remedy. It is a ValueError.
    """
    try:
        part = PartSpec.parse(spec)
    except ValueError as error:
        raise OptionError(f"verifier={spec!r}: {error}") from None
    if part.name == "math":
        _require_math_verify()
    function = VERIFIERS.resolve(part)
    return Verifier(part.name, function)


def exact(response: str, answer: str, *, ignore_case: bool = False, extract: Extract = _ALL) -> float:
    """Right where the texts are equal up to white space.

    Args:
        response: Text of the response.
        answer: The known answer.
        ignore_case: Whether upper and lower case are the same.
        extract: Where the answer stands, see `tppo_rl.envs.answer_extraction`.

    Raises:
        VerifierError: the known answer is empty, or a pattern of `extract` took too long.
    """
    if not answer.strip():
        raise VerifierError("the known answer is empty")
    found = extracted(response, extract)
    if found is None:
        return 0.0
    texts = [" ".join(text.split()) for text in (found, answer)]
    if ignore_case:
        texts = [text.casefold() for text in texts]
    return float(texts[0] == texts[1])


def numeric(
    response: str,
    answer: str,
    *,
    tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    relative_tolerance: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0,
    extract: Extract = _ALL,
) -> float:
    """Right where the last numbers of response and answer are equal, as exact fractions.

    It reads `1,234.5`, `-3`, `$5`, `3/4`, `1 1/2`, `\\frac{3}{4}`, `1.5e3`, `1.5 × 10^3`, `2^10` and `50%`, which equals both 50
    and 0.5 where one side alone has the sign. Units are not compared. The comma separates thousands, the point decimals.

    Args:
        response: Text of the response.
        answer: The known answer.
        tolerance: Largest difference that is right.
        relative_tolerance: Largest difference as a fraction of the answer; added to `tolerance`.
        extract: Where the answer stands; the last number of that counts.

    Raises:
        VerifierError: the known answer has no number that can be read, or a pattern of `extract` took too long.
    """
    wanted = last_number(answer)
    if wanted is None:
        raise VerifierError(f"the known answer {answer[:100]!r} has no number")
    found = last_number(extracted(response, extract) or "")
    if found is None:
        return 0.0
    return float(found.equals(wanted, tolerance=tolerance, relative_tolerance=relative_tolerance))


def multiple_choice(
    response: str, answer: str, *, choices: Annotated[str, Field(min_length=2)] = "ABCDEFGHIJ", extract: Extract = _ALL
) -> float:
    """Right where the response chooses the answer's letter.

    The letter is looked for in the last box, then after the last "answer" up to the end of the sentence, then in the last line
    that begins with a letter as in `B`, `(B)` or `B) text`. Two letters in one place are no choice.

    Args:
        response: Text of the response.
        answer: The known letter, as `B`, `(B)` or `B) text`.
        choices: Letters that may be chosen.
        extract: Where the answer stands.

    Raises:
        VerifierError: the known answer is none of the letters, or a pattern of `extract` took too long.
    """
    letters = re.escape(choices.upper())
    wanted = _leading_letter(answer, letters)
    if wanted is None:
        raise VerifierError(f"the known answer {answer[:100]!r} is none of {', '.join(choices)}")
    found = extracted(response, extract)
    return float(found is not None and _choice(found, letters) == wanted)


def math(response: str, answer: str, *, extract: Extract = _ALL) -> float:
    """Right where response and answer are mathematically equal, by the package math-verify.

    No alarm signals are used, on any thread: the caller brings the deadline. What would fill time or memory by itself (towers
    of powers, large exponents, factorials and binomial coefficients, deep brackets) is refused before it is evaluated.

    Args:
        response: Text of the response.
        answer: The known answer, LaTeX or plain.
        extract: Where the answer stands; `all` leaves that to math-verify (boxes first, then formulas and numbers).

    Raises:
        VerifierError: math-verify is not installed or raised, the known answer cannot be read, the answer is too long or too
            costly to evaluate, or a pattern of `extract` took too long.
    """
    where = Extraction.parse(extract)
    found = extracted(response, where)
    if found is None:
        return 0.0
    text = found if where.where == "all" else f"${found}$"
    boxed = last_boxed(found) if where.where == "all" else None
    _refuse_costly(boxed if boxed is not None else found[-_MAX_MATH_CHARACTERS:])
    if where.where == "all":
        # What counts stands at the end; a box that began earlier is kept whole.
        text = f"$\\boxed{{{boxed}}}$" if boxed else found[-_MAX_MATH_CHARACTERS:]
    _refuse_costly(answer)
    library = _math_verify()
    timed_out = importlib.import_module("math_verify.errors").TimeoutException
    try:
        wanted = _parsed(library, answer)
        given = library.parse(text, parsing_timeout=None, raise_on_error=True)
        if not wanted:
            raise VerifierError(f"math-verify cannot read the known answer {answer[:100]!r}")
        return float(library.verify(wanted, given, timeout_seconds=None, raise_on_error=True))
    except VerifierError:
        raise
    except (Exception, timed_out) as error:
        raise VerifierError(f"math-verify failed: {type(error).__name__}: {error}"[:500]) from None


def _parsed(library: Any, answer: str) -> list[Any]:
    """Reads the known answer: as it is where it is marked as a formula, else as a formula."""
    text = answer if "$" in answer or "\\boxed" in answer or "\\[" in answer or "\\(" in answer else f"${answer}$"
    return list(library.parse(text, fallback_mode="no_fallback", parsing_timeout=None, raise_on_error=True))


def _refuse_costly(text: str) -> None:
    if len(text) > _MAX_MATH_CHARACTERS:
        raise VerifierError(f"an answer of {len(text)} characters is too long")
    if _TOO_COSTLY.search(text) or _depth(text) > _MAX_DEPTH:
        raise VerifierError(f"{text[:100]!r} is too costly to evaluate")


def _depth(text: str) -> int:
    """Most brackets within one another; those that are not closed count, too."""
    depth = deepest = 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        deepest = max(deepest, depth)
    return deepest


def extracted(response: str, extract: Any) -> str | None:
    """Returns the answer in a response, a number in one form whatever way it was written; None where there is none.

    Args:
        response: Text of the response.
        extract: See `Extraction`.

    Raises:
        VerifierError: the search for a user's pattern took too long.
    """
    where = Extraction.parse(extract)
    if where.where == "last_number":
        number = last_number(response)
        if number is None:
            return None
        return f"{number.value}{'%' if number.percent else ''}"
    return where(response)


def _choice(response: str, letters: str) -> str | None:
    boxed = last_boxed(response)
    if boxed is not None:
        return _leading_letter(re.sub(r"\\(?:text|mathrm|textbf|mathbf)\{", "", boxed).strip("{} "), letters)
    position = response.lower().rfind("answer")
    if position >= 0:
        clause = re.split(r"[\n;]|\.\s", response[position + len("answer") :][:200], maxsplit=1)[0]
        found = {
            (match[1] or match[2]).upper()
            for match in re.finditer(rf"\(([{letters}{letters.lower()}])\)|(?<![\w'])([{letters}])(?![\w'])", clause)
        }
        if found:
            return found.pop() if len(found) == 1 else None
    for line in reversed(response.splitlines()):
        letter = _leading_letter(line, letters)
        if letter is not None:
            return letter
    return None


def _leading_letter(text: str, letters: str) -> str | None:
    """The letter of `B`, `(b)`, `**B**`, `B) text`, `B. text`, `B: text`."""
    match = re.match(
        rf"[\s*\"']*(?:\(([{letters}{letters.lower()}])\)|([{letters}{letters.lower()}])\s*(?:[).:*\"']|$))", text
    )
    return (match[1] or match[2]).upper() if match else None


def _math_verify() -> Any:
    try:
        library = importlib.import_module("math_verify")
        for part in ("parser", "grader"):
            # It warns once that nobody sets an alarm; the caller does.
            importlib.import_module(f"math_verify.{part}").TIMEOUT_WARNING_SHOWN = True  # type: ignore[attr-defined]
    except ImportError as error:
        raise VerifierError(f"the package math-verify is not installed ({error})") from None
    return library


def _require_math_verify() -> None:
    if importlib.util.find_spec("math_verify") is None:
        raise OptionError(
            "verifier='math': the package math-verify is not installed; pip install 'tppo-rl[math]', or set verifier to 'numeric'"
        )
