"""Running sums modulo 100 over a chain of labeled digits: short on average, with a heavy tail.

Prompt ``a3k9B1=``: distinct labels (letters of either case), each with a one-digit operand. Worked solution
``a3=3;k9=12;B1=13;#13``: one step per operand with the sum so far modulo 100, then ``#`` and the final sum.
"""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from tppo_rl.envs.text_env import Problem, Reply, TextEnv, is_finite, is_integer, require

LABELS = string.ascii_letters
MIN_OPERANDS = 2
MAX_OPERANDS = len(LABELS)
MODULUS = 100


def operand_probabilities(max_operands: int, tail_exponent: float, long_share: float = 0.0) -> np.ndarray:
    """P(n) proportional to n^-tail_exponent for n = 2 … max_operands (a truncated power law), mixed with a share of
    n = max_operands.

    Returns:
        Probabilities of shape (max_operands - 1,), float64; entry i belongs to i + 2 operands.
    """
    weights = np.arange(MIN_OPERANDS, max_operands + 1, dtype=np.float64) ** -tail_exponent
    probabilities = (1.0 - long_share) * weights / weights.sum()
    probabilities[-1] += long_share
    return probabilities


def running_sums(operands: Sequence[int]) -> list[int]:
    """The sum modulo 100 after each operand."""
    return list(accumulate(operands, lambda total, operand: (total + operand) % MODULUS))


@dataclass(frozen=True)
class Chain(Problem):
    """A chain; ``labels[i]`` is the letter before ``operands[i]``."""

    labels: str = ""
    operands: tuple[int, ...] = ()

    @property
    def answer(self) -> str:
        """The final sum modulo 100 in decimal digits, without leading zeros."""
        return str(running_sums(self.operands)[-1])


def solution(
    labels: str, operands: Sequence[int], stop_after: int | None = None, sums: Sequence[int] | None = None
) -> str:
    """A worked solution that states its sum as final after ``stop_after`` steps; None uses all operands. ``sums`` are
    stated after the steps in place of the right ones."""
    sums = (running_sums(operands) if sums is None else sums)[:stop_after]
    steps = (f"{label}{operand}={total};" for label, operand, total in zip(labels, operands, sums, strict=False))
    return f"{''.join(steps)}#{sums[-1]}"


class ArithmeticChain(TextEnv[Chain]):
    """Add up a chain of one-digit operands modulo 100, one step each. Registered as
    ``tppo_rl/ArithmeticChain-v0``.

    The number of operands n follows a truncated power law, P(n) ~ n^-tail_exponent, n = 2 … max_operands.
    With the defaults a worked solution has 30 characters on average and 314 at most. `long_share` makes a tail that
    stays long however much shorter the rest is: so many prompts have `max_operands` operands.

    One turn an episode. The answer is what follows ``#``; it must be the final sum, digit for digit, and the
    text must hold exactly one ``#``. What stands before it is the model's own business.

    `reset`'s info adds ``operands`` (tuple of int) and ``answer`` (str).

    Args:
        max_operands: Most operands of a chain, 2 to 52.
        tail_exponent: Exponent of the power law, 0 (every length equally likely) or more; the smaller, the
            heavier the tail.
        long_share: Share of the prompts that have `max_operands` operands, beside those of the power law, 0 to 1.
        **common: Options of every environment, see `TextEnv`.

    Raises:
        ValueError: On a bad option; names the option, its value and what is allowed.
    """

    rewards_scores_alone = True

    def __init__(
        self, *, max_operands: int = MAX_OPERANDS, tail_exponent: float = 2.2, long_share: float = 0.0, **common: Any
    ) -> None:
        super().__init__(**common)
        require(
            is_integer(max_operands) and MIN_OPERANDS <= max_operands <= MAX_OPERANDS,
            "max_operands",
            max_operands,
            f"give an integer from {MIN_OPERANDS} to {MAX_OPERANDS} (labels are distinct letters)",
        )
        require(
            is_finite(tail_exponent) and 0 <= tail_exponent <= 100,
            "tail_exponent",
            tail_exponent,
            "give a number from 0 to 100, for example 2.2",
        )
        require(is_finite(long_share) and 0 <= long_share <= 1, "long_share", long_share, "give a share, 0 to 1")
        self.max_operands = max_operands
        self.tail_exponent = float(tail_exponent)
        self.long_share = float(long_share)
        self._cumulative = np.cumsum(operand_probabilities(max_operands, self.tail_exponent, self.long_share))

    def candidates(self, rng: np.random.Generator) -> Iterator[Chain]:
        """Chains, each drawn anew."""
        while True:
            yield self._draw(rng)

    def _draw(self, rng: np.random.Generator) -> Chain:
        index = int(np.searchsorted(self._cumulative, rng.random(), side="right"))
        count = min(index + MIN_OPERANDS, self.max_operands)
        labels = "".join(LABELS[i] for i in rng.permutation(len(LABELS))[:count])
        operands = tuple(int(operand) for operand in rng.integers(10, size=count))
        prompt = "".join(f"{label}{operand}" for label, operand in zip(labels, operands, strict=True)) + "="
        details = {"operands": operands, "answer": str(running_sums(operands)[-1])}
        return Chain(prompt, solution(labels, operands), details, labels, operands)

    def respond(self, problem: Chain, text: str, turn: int) -> Reply:
        """Verify the answer; the episode ends with the first turn."""
        _, mark, answer = text.partition("#")
        return Reply(score=1.0 if mark and answer == problem.answer else 0.0)

    def worked_solution(self, stop_after: int | None = None, sums: Sequence[int] | None = None) -> str:
        """The current problem's worked solution, or one that stops early or goes wrong.

        Args:
            stop_after: Steps after which the sum so far is stated as final, 1 to the number of operands;
                fewer than all of them make a demonstration that gives up too soon. None: all of them.
            sums: What to state after each step, one for each operand; None: the right sums.

        Raises:
            gymnasium.error.ResetNeeded: Before the first `reset`.
            ValueError: If the chain has no such step, or `sums` are not as many as its operands.
        """
        chain = self.current_problem
        count = len(chain.operands)
        require(
            stop_after is None or (is_integer(stop_after) and 1 <= stop_after <= count),
            "stop_after",
            stop_after,
            f"give None or an integer from 1 to {count}, the number of operands",
        )
        require(sums is None or len(sums) == count, "sums", sums, f"give None or {count} sums, one for each operand")
        return solution(chain.labels, chain.operands, stop_after, sums)
