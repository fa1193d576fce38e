"""An environment of your own: repeat a number backward.

tppo-rl train file examples/environment.yaml
"""

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np

from tppo_rl.envs import Problem, Reply, TextEnv


class Backward(TextEnv[Problem]):
    def __init__(self, *, digits: int = 4, **common: Any) -> None:
        super().__init__(**common)
        self.digits = digits

    def candidates(self, rng: np.random.Generator) -> Iterator[Problem]:
        while True:
            number = "".join(map(str, rng.integers(10, size=self.digits)))
            yield Problem(prompt=f"{number}=", worked_solution=number[::-1])

    def respond(self, problem: Problem, text: str, turn: int) -> Reply:
        return Reply(score=float(text.strip() == problem.worked_solution))


gymnasium.register(id="examples/Backward-v0", entry_point=Backward)
