"""Work out expressions with a calculator of one operation: the model calls, the environment answers, the model goes on."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tppo_rl.envs.text_env import Problem, Reply, TextEnv, is_finite, is_integer, require

MOST_OPERATIONS = 16

_CALL = re.compile(r"\[(-?[0-9]{1,18})([-+*])(-?[0-9]{1,18})\]")
_ANSWER = "#"


def calculate(left: int, operation: str, right: int) -> int:
    """``left`` and ``right`` added (``+``), subtracted (``-``) or multiplied (``*``)."""
    if operation == "+":
        return left + right
    return left - right if operation == "-" else left * right


@dataclass(frozen=True)
class Expression(Problem):
    """An expression, its calls in order, and the turn that states its value."""

    calls: tuple[str, ...] = ()
    answer: str = ""


def work_out(numbers: tuple[int, ...], operations: str) -> Expression:
    """The problem of an expression, which is worked out from left to right; products stand first only, so that this is its
    value by the usual rules, too.
    """
    calls: list[str] = []
    values: list[int] = []
    value = numbers[0]
    for operation, number in zip(operations, numbers[1:], strict=True):
        calls.append(f"[{value}{operation}{number}]")
        value = calculate(value, operation, number)
        values.append(value)
    prompt = str(numbers[0]) + "".join(map("{}{}".format, operations, numbers[1:])) + "="
    *early, worked = ((*calls[:done], f"{_ANSWER}{found}") for done, found in enumerate(values, start=1))
    details = {"answer": str(value), "worked_turns": worked, "early_turns": tuple(early)}
    return Expression(prompt, None, details, tuple(calls), worked[-1])


class Calculator(TextEnv[Expression]):
    """Work out an expression with a calculator. Registered as ``tppo_rl/Calculator-v0``.

    The prompt ``37*46+58=`` is an expression. A turn ``[37*46]`` calls the calculator, which does one operation on two
    integers of up to 18 digits and answers ``1702``. A turn that begins with ``#`` is the answer, ``#1760``, and ends the
    episode. Any other turn is answered with ``no call``. When the turns are spent the episode ends as wrong.

    `reset`'s info adds ``answer`` (str), ``worked_turns`` (the calls and the answer, tuple of str) and ``early_turns``
    (turns that state what one of the first calls gave as the answer).

    Args:
        min_operations, max_operations: Operations of an expression, 1 to 16; every number is equally likely.
        max_number: Numbers are 0 to this, 1 to 10^6.
        max_turns: Turns of an episode, more than `max_operations`; None gives twice as many as `max_operations`.
        call_reward: Reward of a call that does one of the expression's own operations on what was found before it, once
            for each of them.
        no_call_reward: Reward of a turn that is neither a call nor an answer.
        **common: Options of every environment, see `TextEnv`.

    Raises:
        ValueError: On a bad option; names the option, its value and what is allowed.
    """

    def __init__(
        self,
        *,
        min_operations: int = 2,
        max_operations: int = 5,
        max_number: int = 99,
        max_turns: int | None = None,
        call_reward: float = 0.0,
        no_call_reward: float = 0.0,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require(
            is_integer(max_operations) and 1 <= max_operations <= MOST_OPERATIONS,
            "max_operations",
            max_operations,
            f"give an integer from 1 to {MOST_OPERATIONS}",
        )
        require(
            is_integer(min_operations) and 1 <= min_operations <= max_operations,
            "min_operations",
            min_operations,
            f"give an integer from 1 to max_operations, which is {max_operations}",
        )
        require(
            is_integer(max_number) and 1 <= max_number <= 10**6,
            "max_number",
            max_number,
            "give an integer from 1 to 10^6",
        )
        require(
            max_turns is None or (is_integer(max_turns) and max_turns > max_operations),
            "max_turns",
            max_turns,
            f"give an integer of {max_operations + 1} or more, which is a turn for each of the max_operations and one for "
            "the answer, or None",
        )
        require(is_finite(call_reward), "call_reward", call_reward, "give a finite number")
        require(is_finite(no_call_reward), "no_call_reward", no_call_reward, "give a finite number")
        self.min_operations = min_operations
        self.max_operations = max_operations
        self.max_number = max_number
        self.max_turns = 2 * max_operations if max_turns is None else max_turns
        self.call_reward = float(call_reward)
        self.no_call_reward = float(no_call_reward)
        self._called: set[str] = set()

    @property
    def return_range(self) -> tuple[float, float]:
        """Lowest and highest sum of an episode's rewards."""
        calls = self.max_operations * self.call_reward
        others = self.max_turns * self.no_call_reward
        low, high = min(0.0, self.wrong_reward), max(0.0, self.correct_reward)
        return low + min(0.0, calls) + min(0.0, others), high + max(0.0, calls) + max(0.0, others)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, see `TextEnv.reset`."""
        self._called = set()
        return super().reset(seed=seed, options=options)

    def candidates(self, rng: np.random.Generator) -> Iterator[Expression]:
        """Expressions, each drawn anew."""
        while True:
            count = int(rng.integers(self.min_operations, self.max_operations + 1))
            numbers = tuple(int(number) for number in rng.integers(self.max_number + 1, size=count + 1))
            first = "*+-"[int(rng.integers(3))]
            yield work_out(numbers, first + "".join("+-"[int(sign)] for sign in rng.integers(2, size=count - 1)))

    def respond(self, problem: Expression, text: str, turn: int) -> Reply:
        """Check an answer, or do what a call says."""
        text = text.strip()
        if text.startswith(_ANSWER):
            return Reply(score=float(text == problem.answer))
        if turn + 1 >= self.max_turns:
            return Reply(score=0.0)
        call = _CALL.fullmatch(text)
        if call is None:
            return Reply("no call", reward=self.no_call_reward)
        left, operation, right = call.groups()
        answer = str(calculate(int(left), operation, int(right)))
        # Calls are compared as they are written in the solution: of an operation's many spellings one is rewarded.
        is_new = text in problem.calls and text not in self._called
        self._called.add(text)
        return Reply(answer, reward=self.call_reward if is_new else 0.0)
