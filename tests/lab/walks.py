"""A policy and an environment whose true values are known: a walk of tokens, scored by the end that it reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tppo_rl.rollout.continuations import ContinuationSampler
from tppo_rl.rollout.engine import Output, Request, Sampling
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.sampler import EpisodeLimits

END, DOWN, UP = 0, 1, 2
GOAL = 4
CHANCE = 0.6
"""Of a step up, for every prompt."""


def place_of(tokens: Sequence[int]) -> int:
    """Where a walk stands: it begins at 0, and END does not move it."""
    return sum({UP: 1, DOWN: -1}.get(int(token), 0) for token in tokens)


def true_value(tokens: Sequence[int]) -> float:
    """Probability of GOAL before -GOAL (gambler's ruin)."""
    ratio = (1 - CHANCE) / CHANCE
    place = min(max(place_of(tokens), -GOAL), GOAL)
    return (1 - ratio ** (place + GOAL)) / (1 - ratio ** (2 * GOAL))


class WalkEngine:
    """Implements the engine protocol: a token is a step, and END follows where an end is reached."""

    def __init__(self, seed: int = 0, prompt_length: int = 2) -> None:
        self.version = 0
        self._rng = np.random.default_rng(seed)
        self._prompt_length = prompt_length
        self._running: dict[str, tuple[Request, list[int]]] = {}
        self.submitted: list[list[int]] = []

    def submit(self, request: Request) -> None:
        self.submitted.append(list(request.tokens))
        self._running[request.request_id] = request, list(request.tokens[self._prompt_length :])

    def step(self) -> list[Output]:
        outputs = []
        for request_id, (request, walked) in list(self._running.items()):
            at_an_end = abs(place_of(walked)) == GOAL
            token = END if at_an_end else UP if self._rng.random() < CHANCE else DOWN
            walked.append(token)
            sampled = self._prompt_length + len(walked) - len(request.tokens)
            ended = token == END or sampled == request.max_new_tokens
            outputs.append(Output(request_id, [token], [-0.5], 0, token == END, ended))
            if ended:
                del self._running[request_id]
        return outputs

    def cut(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            del self._running[request_id]

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        self.version = version

    def reseed(self, seed: int) -> None:
        """The walks have their own noise."""

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        return np.full(len(tokens) - 1, -0.5, np.float32)

    def stop(self) -> None:
        self._running.clear()


class WalkChat:
    """A chat whose texts are the tokens' digits."""

    end_of_turn = (END,)
    has_stops = False

    def prompt(self, text: str, earlier: Sequence[Any] = (), tools: Sequence[Any] = ()) -> list[int]:
        return [60, 61 + int(text.split()[1])]

    def user_turn(self, text: str, *, is_closed: bool = True) -> list[int]:
        return [62]

    def text(self, tokens: Sequence[int]) -> str:
        return "".join(str(int(token)) for token in tokens if token != END)


class WalkEnv:
    """Right are walks that reach GOAL; with `turns` above 1 it lets the model go on."""

    def __init__(self, turns: int = 1) -> None:
        self._turns = turns

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        return f"walk {seed % 100}", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        right = place_of([int(letter) for letter in text]) == GOAL
        return "go on", float(right), self._turns == 1, False, {"correct": right} if self._turns == 1 else {}

    def close(self) -> None:
        pass


class FailingEnv(WalkEnv):
    """Cannot score walks of an odd number of steps down."""

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if text.count(str(DOWN)) % 2:
            raise RuntimeError("no score")
        return super().step(text)


def walk_sampler(
    seed: int = 0,
    *,
    cap: int = 400,
    slots: int = 32,
    turns: int = 1,
    env: Callable[[], Any] | None = None,
    rewards: Rewards | None = None,
) -> ContinuationSampler:
    return ContinuationSampler(
        WalkEngine(seed),
        env or (lambda: WalkEnv(turns)),
        WalkChat(),
        num_slots=slots,
        limits=EpisodeLimits(8, cap, None),
        sampling=Sampling(),
        rewards=rewards,
        name="lab",
        environment="walks-v0",
    )
