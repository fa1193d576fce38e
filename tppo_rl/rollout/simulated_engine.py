"""An engine without a model: lengths from a distribution, time from a cost curve.

It is for tests of the pipeline's bookkeeping and for planning beyond one machine. Tokens are a function of the
position, so that a test can tell whether one was lost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tppo_rl.rollout.engine import Output, Request


@dataclass(frozen=True)
class StepCost:
    """Seconds of one engine step, `base + per_sequence * running`, and of a weight update."""

    base: float = 0.0
    per_sequence: float = 0.0
    weight_update: float = 0.0


@dataclass
class _Running:
    request: Request
    remaining: int
    position: int = 0


def draw_lognormal_length(mean: float, sigma: float) -> Callable[[np.random.Generator], int]:
    """Returns a function that draws response lengths in tokens, lognormal with a mean and a shape (1 is a long tail)."""
    location = np.log(mean) - sigma**2 / 2
    return lambda generator: max(1, round(float(generator.lognormal(location, sigma))))


class SimulatedEngine:
    """Implements the engine protocol with drawn lengths.

    Args:
        draw_length: gives the length in tokens of a new request's turn, end-of-turn token included.
        end_of_turn: the token that ends a turn.
        vocabulary_size: ordinary tokens are in [1, vocabulary_size); `end_of_turn` is never among them.
        cost: seconds of steps and updates; the engine adds them to `seconds`, and with `sleep` also sleeps them.
    """

    def __init__(
        self,
        draw_length: Callable[[np.random.Generator], int],
        *,
        end_of_turn: int = 0,
        vocabulary_size: int = 64,
        cost: StepCost | None = None,
        seed: int = 0,
        sleep: bool = False,
    ) -> None:
        self.version = 0
        self.seconds = 0.0
        self.num_steps = 0
        self._draw_length = draw_length
        self._end_of_turn = end_of_turn
        self._vocabulary_size = vocabulary_size
        self._cost = cost or StepCost()
        self._generator = np.random.default_rng(seed)
        self._sleep = sleep
        self._running: dict[str, _Running] = {}
        self._lengths: dict[str, int] = {}

    def submit(self, request: Request) -> None:
        assert request.request_id not in self._running, f"{request.request_id} runs already"
        remaining = self._lengths.pop(request.request_id, 0) or self._draw_length(self._generator)
        self._running[request.request_id] = _Running(request, remaining, len(request.tokens))

    def step(self) -> list[Output]:
        self.num_steps += 1
        self._spend(self._cost.base + self._cost.per_sequence * len(self._running))
        outputs = [self._next_token(running) for running in self._running.values()]
        for output in outputs:
            if output.request_ended:
                del self._running[output.request_id]
        return outputs

    def cut(self, request_ids: Sequence[str]) -> None:
        for request_id in request_ids:
            self._lengths[request_id] = self._running.pop(request_id).remaining

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        self._spend(self._cost.weight_update)
        self.version = version

    def reseed(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        return np.full(len(tokens) - 1, -np.log(self._vocabulary_size), np.float32)

    def stop(self) -> None:
        self._running.clear()

    def _next_token(self, running: _Running) -> Output:
        running.remaining -= 1
        running.position += 1
        new_tokens = running.position - len(running.request.tokens)
        turn_ended = running.remaining == 0
        token = self._end_of_turn if turn_ended else 1 + running.position % (self._vocabulary_size - 1)
        return Output(
            request_id=running.request.request_id,
            tokens=[token],
            log_probs=[-float(np.log(self._vocabulary_size))],
            version=self.version,
            turn_ended=turn_ended,
            request_ended=turn_ended or new_tokens == running.request.max_new_tokens,
        )

    def _spend(self, seconds: float) -> None:
        self.seconds += seconds
        if self._sleep and seconds > 0:
            time.sleep(seconds)
