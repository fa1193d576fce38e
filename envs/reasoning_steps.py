"""Steps that lead to the answers of some reasoning-gym tasks, for demonstrations: the package has bare answers alone.

Each step needs little: one sum, or the letters of one word. That is what a small model learns in minutes where it does not learn to
give the answer at once, and it makes responses long enough for several windows. With every step stands the answer that holds so
far, for demonstrations that stop too soon.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple


class Step(NamedTuple):
    """One step of a worked solution."""

    text: str
    answer: str
    """What has been found so far; the last step has the answer."""


def chain_sum_steps(entry: Mapping[str, Any]) -> list[Step]:
    """Running sums: ``5-9=-4;`` and ``-4+3=-1;`` for ``5 - 9 + 3``."""
    first, *rest = entry["metadata"]["expression"].split()
    total, steps = int(first), []
    for sign, term in zip(rest[::2], rest[1::2], strict=True):
        new = total + int(term) if sign == "+" else total - int(term)
        steps.append(Step(f"{total}{sign}{term}={new};", str(new)))
        total = new
    return steps


def letter_counting_steps(entry: Mapping[str, Any]) -> list[Step]:
    """Words with every letter followed by the number of right ones so far: ``t0h0e1``, `` w1e2;`` for ``the we``."""
    letter, count, steps = entry["metadata"]["target_letter"], 0, []
    words = entry["metadata"]["span"]
    for index, word in enumerate(words):
        text = " " if index else ""
        for character in word:
            count += character.lower() == letter
            text += f"{character}{count}" if character.isalpha() else character
        steps.append(Step(text + (";" if index == len(words) - 1 else ""), str(count)))
    return steps


def rotate_matrix_steps(entry: Mapping[str, Any]) -> list[Step]:
    """The matrix after every quarter turn, rows apart by bars: ``31|42;`` and ``43|21;`` for two turns of ``1 2|3 4``."""
    matrix, steps = entry["metadata"]["matrix"], []
    for _ in range(entry["metadata"]["num_rotations"]):
        matrix = [list(row) for row in zip(*matrix[::-1], strict=True)]
        text = "|".join("".join(map(str, row)) for row in matrix) + ";"
        steps.append(Step(text, "\n".join(" ".join(map(str, row)) for row in matrix)))
    return steps or [Step("", entry["answer"])]


STEPS: Mapping[str, Callable[[Mapping[str, Any]], list[Step]]] = {
    "chain_sum": chain_sum_steps,
    "letter_counting": letter_counting_steps,
    "rotate_matrix": rotate_matrix_steps,
}
"""By task: from an item of its dataset to what is written before the answer."""
