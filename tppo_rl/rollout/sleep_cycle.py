"""The order in which an engine sleeps and wakes around an update.

    awake ──fall_asleep──▶ asleep ──taking_weights──▶ awake, with new weights
      ▲                      │        wake weights, load them, wake keys and values
      └──────wake_up─────────┘

Weights come first, because what is loaded needs their memory. Keys and values come last: until the new weights are there, the
memory of both together need not be free. Whatever fails, the engine is awake afterwards, or the next call tries again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

WEIGHTS, KEYS_AND_VALUES = "weights", "kv_cache"
"""vLLM's names of what it gives back and takes again."""


class SleepCycle:
    """Sleeping and waking of one engine, in the right order. Calls beyond the order do nothing.

    Args:
        sleep: Gives back the engine's memory; running requests lose their keys and values, and go on later.
        wake: Takes a part back, `WEIGHTS` or `KEYS_AND_VALUES`. After the last part the engine takes steps again.
    """

    def __init__(self, sleep: Callable[[], None], wake: Callable[[str], None]) -> None:
        self._sleep = sleep
        self._wake = wake
        self._absent: list[str] = []

    @property
    def state(self) -> Literal["awake", "asleep", "waking"]:
        """Whether all is there, nothing, or the weights alone."""
        if not self._absent:
            return "awake"
        return "asleep" if WEIGHTS in self._absent else "waking"

    def fall_asleep(self) -> None:
        """Gives back the engine's memory. Where that fails, the engine counts as asleep, so that it is woken."""
        if self._absent:
            # Half awake after an error: it can sleep only as a whole.
            if self.state == "asleep":
                return
            self.wake_up()
        self._absent = [WEIGHTS, KEYS_AND_VALUES]
        self._sleep()

    def wake_up(self) -> None:
        """Takes back all that is absent, weights first."""
        while self._absent:
            self._wake(self._absent[0])
            del self._absent[0]

    @contextmanager
    def taking_weights(self) -> Iterator[None]:
        """Inside, weights can be loaded; afterwards the engine is awake, also where loading has failed."""
        if self.state == "asleep":
            self._wake(WEIGHTS)
            self._absent.remove(WEIGHTS)
        try:
            yield
        finally:
            self.wake_up()
