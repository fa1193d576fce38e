"""The asynchronous pipeline without Ray: how old tokens are when they are trained, and what waits for what.

    slots ──fragments──▶ TrainQueue ──batch──▶ update (seconds) ──▶ version + 1 ──▶ slots, at their next request

The queue and the rule that holds updates back are the real ones (`tppo_rl.rollout.train_queue`), and so is the limit on requests
to env-runners (`tppo_rl.rollout.controller`). Engine steps and updates take given seconds; all env-runners are one here.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tppo_rl.plan.lengths import ResponseLengths
from tppo_rl.rollout.train_queue import REQUESTS_IN_FLIGHT, TrainQueue, may_update, oldest_allowed_to_stay

_FINEST = 32
"""Requests of an update at most; more would only make the simulation slow."""
_MOST_SLOTS = 128
"""More are simulated by as many, of which each stands for several."""


@dataclass(frozen=True)
class Pipeline:
    """An asynchronous run."""

    lengths: ResponseLengths
    window: int
    slots: int
    """Of all env-runners."""
    batch_tokens: int
    max_staleness: int
    engine_steps: int
    """Of one request."""
    step_seconds: float
    weight_seconds: float
    """In which the engine stands still for new weights, and recomputes what it holds."""
    update_seconds: float
    """Of an update, whatever its size."""
    token_seconds: float
    """Of an update, for each trained token."""
    max_queued_batches: float | None = None
    """Batches from which on env-runners wait; None: `max_staleness`."""

    @property
    def depth(self) -> float:
        """Batches from which on env-runners wait."""
        return self.max_queued_batches or self.max_staleness


@dataclass(frozen=True)
class PipelineResult:
    """What came of it, after a while."""

    seconds_per_token: float
    staleness_mean: float
    """Trainer's version minus the token's, over trained tokens."""
    staleness_max: int
    tokens_per_update: float


@dataclass
class _Fragment:
    """As much of a fragment as the queue looks at."""

    tokens: Counter[int] = field(default_factory=Counter)
    """By policy version."""

    def __len__(self) -> int:
        return self.tokens.total()

    @property
    def oldest_version(self) -> int:
        return min(self.tokens)


class _Slots:
    """Responses in generation, refilled at once."""

    def __init__(self, lengths: ResponseLengths, slots: int, window: int, generator: np.random.Generator) -> None:
        self._lengths = lengths
        self._window = window
        self._generator = generator
        self._left = [lengths.draw(generator) for _ in range(slots)]
        self._open = [_Fragment() for _ in range(slots)]

    def run(self, steps: int, version: int) -> list[_Fragment]:
        """Samples so many tokens in every slot and returns the fragments that were closed."""
        closed = []
        for slot in range(len(self._left)):
            steps_left = steps
            while steps_left:
                window = self._open[slot]
                count = min(steps_left, self._left[slot], self._window - len(window))
                window.tokens[version] += count
                steps_left -= count
                self._left[slot] -= count
                if not self._left[slot] or len(window) == self._window:
                    closed.append(window)
                    self._open[slot] = _Fragment()
                if not self._left[slot]:
                    self._left[slot] = self._lengths.draw(self._generator)
        return closed

    def oldest_version(self, otherwise: int) -> int:
        """Returns that of the open tokens, or the given one where there are none."""
        return min((window.oldest_version for window in self._open if window.tokens), default=otherwise)


def steps_of_request(pipeline: Pipeline) -> int:
    """Returns the engine steps of a request as they are simulated."""
    steps_of_batch = -(-pipeline.batch_tokens // pipeline.slots)
    return max(min(pipeline.engine_steps, pipeline.window), steps_of_batch // _FINEST)


class _Run:
    """The state of a simulated run; a loop over its two kinds of events, the end of a request and of an update."""

    def __init__(self, pipeline: Pipeline, seed: int) -> None:
        self._pipeline = pipeline
        self._steps = steps_of_request(pipeline)
        self._slots = _Slots(pipeline.lengths, pipeline.slots, pipeline.window, np.random.default_rng(seed))
        self._queue = TrainQueue()
        self.now = 0.0
        self.version = 0
        self.staleness: Counter[int] = Counter()
        # Weights go to an env-runner behind the requests that it was sent before: each samples with the version at which
        # it was sent.
        self._requests: deque[int] = deque()
        self._request_ends: float | None = None
        self._update_ends: float | None = None
        self._runner_version = 0
        self._oldest_version = 0

    def update(self) -> None:
        """Goes on until the next update has ended."""
        version = self.version
        while self.version == version:
            self._begin()
            ends = [end for end in (self._request_ends, self._update_ends) if end is not None]
            self.now = min(ends)
            if self._request_ends == self.now:
                self._end_request()
            if self._update_ends == self.now:
                self._update_ends = None
                self.version += 1

    def _begin(self) -> None:
        self._send_requests()
        if self._update_ends is None and self._queue.num_tokens >= self._pipeline.batch_tokens and self._may_update():
            self._begin_update()
            self._send_requests()
        if self._request_ends is None and self._requests:
            fresh = self._runner_version < self._requests[0]
            self._runner_version = self._requests[0]
            seconds = self._steps * self._pipeline.step_seconds + fresh * self._pipeline.weight_seconds
            self._request_ends = self.now + seconds

    def _send_requests(self) -> None:
        tokens = self._pipeline.slots * self._steps
        limit = self._pipeline.depth * self._pipeline.batch_tokens
        while len(self._requests) < REQUESTS_IN_FLIGHT:
            if self._queue.num_tokens + len(self._requests) * tokens >= limit and self._may_update():
                break
            self._requests.append(self.version)

    def _begin_update(self) -> None:
        stay = oldest_allowed_to_stay(self.version, self._pipeline.max_staleness)
        taken: list[Any] = self._queue.pop(self._pipeline.batch_tokens, oldest_allowed_to_stay=stay)
        for fragment in taken:
            for version, count in fragment.tokens.items():
                self.staleness[self.version - version] += count
        tokens = sum(map(len, taken))
        self._update_ends = self.now + self._pipeline.update_seconds + tokens * self._pipeline.token_seconds

    def _end_request(self) -> None:
        closed: list[Any] = self._slots.run(self._steps, self._runner_version)
        self._queue.push(closed)
        self._oldest_version = self._slots.oldest_version(self._runner_version)
        self._requests.popleft()
        self._request_ends = None

    def _may_update(self) -> bool:
        return may_update(self.version, self._pipeline.max_staleness, [self._oldest_version])


def simulate(pipeline: Pipeline, *, updates: int = 36, seed: int = 0) -> PipelineResult:
    """Returns what an asynchronous run comes to, without its first third.

    Args:
        pipeline: The run.
        updates: How many of it.
        seed: Of the lengths.
    """
    shown = min(pipeline.slots, _MOST_SLOTS)
    each = pipeline.slots / shown
    run = _Run(
        replace(
            pipeline,
            slots=shown,
            batch_tokens=max(1, round(pipeline.batch_tokens / each)),
            token_seconds=pipeline.token_seconds * each,
        ),
        seed,
    )
    for _ in range(updates // 3):
        run.update()
    start, version = run.now, run.version
    run.staleness.clear()
    while run.version < updates:
        run.update()
    tokens = run.staleness.total()
    mean = sum(age * count for age, count in run.staleness.items()) / tokens
    return PipelineResult(
        (run.now - start) / tokens / each, mean, max(run.staleness), each * tokens / (run.version - version)
    )
