"""How many held-out prompts are answered, while env-runners are still answering.

An env-runner actor executes one call at a time, so it cannot be asked. It writes its count into Ray's key-value store, at most once
a second, and a thread of the driver reads it there. Nobody does so where nobody watches.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tppo_rl.core.waiting import Stage
from tppo_rl.rollout.rllib_internals import delete_value, read_value, write_value

_EVERY_S = 1.0


class SharedCount:
    """Writes the count of one env-runner; callable, and small enough to be sent to an actor.

    Args:
        key: Of the value in Ray's store.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._written_at = 0.0

    def __call__(self, done: int) -> None:
        if time.monotonic() - self._written_at >= _EVERY_S:
            self._written_at = time.monotonic()
            # No answer may be lost for a count that is not shown.
            with suppress(Exception):
                write_value(self._key, str(done))


@contextmanager
def shared_counts(stage: Stage, number: int) -> Iterator[list[SharedCount]]:
    """Gives a count for each of `number` env-runners and tells the stage their sum once a second, until the block ends."""
    keys = [f"tppo_answers_{uuid.uuid4().hex}" for _ in range(number)]
    ended = threading.Event()

    def read() -> None:
        while not ended.wait(_EVERY_S):
            with suppress(Exception):
                stage.advance(sum(int(read_value(key) or 0) for key in keys))

    thread = threading.Thread(target=read, name="answer-counts", daemon=True)
    thread.start()
    try:
        yield [SharedCount(key) for key in keys]
    finally:
        ended.set()
        # Ray's store may not answer; the thread dies with the process.
        thread.join(timeout=2 * _EVERY_S)
        with suppress(Exception):
            for key in keys:
                delete_value(key)
