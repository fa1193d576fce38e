"""A recorded asynchronous run made again: the driver does what it did, in the same order, and waits where it must.

                recorded                             replayed
poll            sends what is due, takes what came   follows the events up to the end of the update
next batch      polls until there is one             follows the events up to the batch
weights         to whom can take them                to whom they were sent next
"""

from __future__ import annotations

import time
from collections import defaultdict, deque
from typing import Any

from tppo_rl.core.errors import RunError
from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.controller import POLL_S, SAMPLE_TAG, RolloutController
from tppo_rl.rollout.event_log import BATCH, SENT, TAKEN, UPDATE, WEIGHTS, ReplayedEvents
from tppo_rl.rollout.rllib_internals import fetch_ready
from tppo_rl.rollout.sample_result import SampleResult
from tppo_rl.rollout.weight_sync import WeightSync


class ReplayedWeightSync(WeightSync):
    """Sends weights when the recorded run did; arguments are those of `WeightSync`, and the events."""

    def __init__(self, *arguments: Any, events: ReplayedEvents, **more: Any) -> None:
        super().__init__(*arguments, events=events, **more)
        self._replayed = events

    def deliver(self, env_runner: int | None = None) -> None:
        """Sends the newest weights to those to whom they were sent next."""
        while self._undelivered and self._replayed.peek().startswith(WEIGHTS):
            _, target = self._replayed.take()
            deadline = time.monotonic() + self._timeout_s
            while not self._send(target):
                if time.monotonic() > deadline:
                    raise RunError(
                        f"env-runner {target} took no weights for {self._timeout_s:g} s (env_runner_timeout_s)"
                    )
                time.sleep(POLL_S)
            self._undelivered.discard(target)


class ReplayedRollouts(RolloutController):
    """The rollout controller of a replay; arguments are those of `RolloutController`, and the events."""

    def __init__(self, *arguments: Any, events: ReplayedEvents, **more: Any) -> None:
        super().__init__(*arguments, events=events, **more)
        self._replayed = events
        self._arrived: defaultdict[int, deque[SampleResult]] = defaultdict(deque)

    def poll(self, timeout_s: float = POLL_S) -> None:
        """Follows the events up to the end of the update that is under way."""
        if self._replayed.peek() == UPDATE:
            time.sleep(timeout_s)
        self._follow(UPDATE)

    def next_batch(self) -> list[Fragment]:
        """Follows the events up to the batch and returns it."""
        self._backlog.drop_too_old(self._weights.version)
        self._follow(BATCH)
        self._replayed.take()
        return self._pop_batch()

    def update_ended(self) -> None:
        """Follows the events up to the end of the update."""
        self._follow(UPDATE)
        self._replayed.take()

    def _follow(self, until: str) -> None:
        while self._replayed.peek() != until:
            if self._replayed.peek().startswith(WEIGHTS):
                self._weights.deliver()
                continue
            what, env_runner = self._replayed.take()
            if what == SENT:
                self._send_again(env_runner)
            elif what == TAKEN:
                self.ingest(env_runner, self._wait_for(env_runner))
            else:
                raise RunError(
                    f"the recorded events have {what!r} where {until!r} was expected: the order is another one"
                )

    def _send_again(self, env_runner: int) -> None:
        arguments = {"num_engine_steps": self._engine_steps}
        deadline = time.monotonic() + self._patience_s
        tickets = self._tickets_for(env_runner, self._engine_steps)
        draw = self.ledger.draw()
        while not self._send_request(env_runner, tickets, arguments | {"draw": draw}):
            self._fetch(POLL_S)
            if time.monotonic() > deadline:
                raise RunError(f"env-runner {env_runner} took no request for {self._patience_s:g} s")

    def _wait_for(self, env_runner: int) -> SampleResult:
        deadline = time.monotonic() + self._patience_s
        while not self._arrived[env_runner]:
            self._fetch(0.2)
            if time.monotonic() > deadline:
                raise RunError(
                    f"env-runner {env_runner} gave no answer for {self._patience_s:g} s (env_runner_timeout_s)"
                )
        return self._arrived[env_runner].popleft()

    def _fetch(self, timeout_s: float) -> None:
        for env_runner, result in fetch_ready(self._group, SAMPLE_TAG, timeout_s):
            self._arrived[env_runner].append(result)
