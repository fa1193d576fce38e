"""A guessing game over several turns: find a secret integer from the hints ``higher`` and ``lower``."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tppo_rl.envs.text_env import Problem, Reply, TextEnv, is_integer, require

_GUESS = re.compile(r"0|[1-9][0-9]{0,17}")


@dataclass(frozen=True)
class Secret(Problem):
    """The integer to be found."""

    secret: int = 0


class GuessNumber(TextEnv[Secret]):
    """Guess an integer within a few turns. Registered as ``tppo_rl/GuessNumber-v0``.

    The prompt ``12-57?`` says that the secret is an integer from 12 to 57, both included; the range is drawn
    from within 0 … numbers - 1 and differs between the splits. Each turn of the model is one guess in decimal
    digits (white space around it does not count). The environment answers ``higher`` if the secret is higher
    than the guess, ``lower`` if it is lower, ``no number`` if the turn is not a number; each turn uses up one
    guess. The episode terminates as correct at the secret, as wrong when the guesses are spent.

    There is no single gold response, so `reset`'s info has no ``worked_solution``; it adds ``secret`` (int).

    Args:
        numbers: Secrets and ranges lie in 0 … numbers - 1; 2 to 10^6.
        max_turns: Guesses of an episode, 1 or more; None gives as many as halving the whole range needs (7
            for 100 numbers).
        **common: Options of every environment, see `TextEnv`.

    Raises:
        ValueError: On a bad option; names the option, its value and what is allowed.
    """

    rewards_scores_alone = True

    def __init__(self, *, numbers: int = 100, max_turns: int | None = None, **common: Any) -> None:
        super().__init__(**common)
        require(is_integer(numbers) and 2 <= numbers <= 10**6, "numbers", numbers, "give an integer from 2 to 10^6")
        require(
            max_turns is None or (is_integer(max_turns) and max_turns >= 1),
            "max_turns",
            max_turns,
            "give an integer of 1 or more, or None",
        )
        self.numbers = numbers
        self.max_turns = numbers.bit_length() if max_turns is None else max_turns

    def candidates(self, rng: np.random.Generator) -> Iterator[Secret]:
        """Two different ends of a range, then the secret between them."""
        while True:
            low, high = sorted(int(end) for end in rng.integers(self.numbers, size=2))
            if low < high:
                secret = int(rng.integers(low, high + 1))
                yield Secret(f"{low}-{high}?", None, {"secret": secret}, secret)

    def respond(self, problem: Secret, text: str, turn: int) -> Reply:
        """Compare the guess with the secret."""
        stripped = text.strip()
        guess = int(stripped) if _GUESS.fullmatch(stripped) else None
        if guess == problem.secret:
            return Reply(score=1.0)
        if turn + 1 >= self.max_turns:
            return Reply(score=0.0)
        if guess is None:
            return Reply("no number")
        return Reply("higher" if problem.secret > guess else "lower")
