"""Steps that lead to the answers of some reasoning-gym tasks, for demonstrations: the package has bare answers alone.

Each step needs little: one sum, or one letter. That is what a small model learns in minutes where it does not learn to give the
answer at once, and it makes responses long enough for several windows.
"""

from collections.abc import Callable, Mapping
from typing import Any


def chain_sum_steps(entry: Mapping[str, Any]) -> str:
    """Running sums: ``5-9=-4;-4+3=-1;`` for ``5 - 9 + 3``."""
    first, *rest = entry["metadata"]["expression"].split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        steps.append(f"{total}{sign}{term}={new};")
        total = new
    return "".join(steps)


def letter_counting_steps(entry: Mapping[str, Any]) -> str:
    """Every letter of the text with the number of right ones so far, all else as it is: ``t0h0e1 w1e2;`` for ``the we``."""
    letter, count, steps = entry["metadata"]["target_letter"], 0, []
    for character in " ".join(entry["metadata"]["span"]):
        count += character.lower() == letter
        steps.append(f"{character}{count}" if character.isalpha() else character)
    return "".join(steps) + ";"


STEPS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "chain_sum": chain_sum_steps,
    "letter_counting": letter_counting_steps,
}
"""By task: from an item of its dataset to what is written before the answer."""
