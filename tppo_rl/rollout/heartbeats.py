"""Signs of life of env-runners: whether one that has something to do still does something.

                    waits for             unblocked by
env-runner          nothing               -
driver              nothing; it looks     -

An env-runner actor executes one call at a time, so it cannot be asked. While it works it writes a sign into Ray's key-value store, at
most once a second. The driver reads the signs of those that have not answered for a while. A process that is stopped, a GPU kernel
that does not return and an environment that hangs all leave the sign as it was.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from tppo_rl.rollout.rllib_internals import delete_value, heartbeat_key, read_value, write_value

_EVERY_S = 1.0
_LOOKS = 4
"""How often the driver looks at a silent env-runner before it counts as hung."""


class Heartbeat:
    """Writes the signs of one env-runner.

    Args:
        key: Of the value in Ray's store; None: nobody reads it.
    """

    def __init__(self, key: str | None) -> None:
        self._key = key
        self._process = uuid.uuid4().hex[:8]
        self._beats = 0
        self._evaluation = 0
        self._answered = 0
        self._written_at = -_EVERY_S

    def beat(self) -> None:
        """Says that something was done."""
        self._beats += 1
        if self._key is None or time.monotonic() - self._written_at < _EVERY_S:
            return
        self._written_at = time.monotonic()
        # No answer may be lost for a sign that is not seen.
        with suppress(Exception):
            write_value(self._key, f"{self._process} {self._beats} {self._evaluation} {self._answered}")

    def begin_evaluation(self) -> None:
        """Says that an evaluation begins."""
        self._evaluation += 1
        self.answered(0)

    def answered(self, number: int) -> None:
        """Says how many held-out prompts of this evaluation are answered."""
        self._answered = number
        self.beat()

    def stop(self) -> None:
        """Removes the sign."""
        if self._key is not None:
            with suppress(Exception):
                delete_value(self._key)


@dataclass
class _Silence:
    seconds: float = 0.0
    looks: int = 0
    sign: str | None = ""
    """The last one that was seen; empty: none was looked for."""


class Heartbeats:
    """Finds env-runners that hang: they have something to do, do not answer, and show no sign of life.

    Time in which the driver itself does not look does not count.

    Args:
        group: RLlib's EnvRunnerGroup.
        silence_s: Seconds of silence after which an env-runner counts as hung.
        read: Returns the last sign of an env-runner; None: from Ray's store.
    """

    def __init__(self, group: Any, silence_s: float, read: Callable[[int], str | None] | None = None) -> None:
        self.silence_s = silence_s
        self._read = read or partial(sign_of, group)
        self._silences: dict[int, _Silence] = {}
        self._looked_at = time.monotonic()

    def heard(self, env_runner: int) -> None:
        """Is told that an env-runner has answered."""
        self._silences.pop(env_runner, None)

    def hung(self, busy: Iterable[int]) -> list[int]:
        """Returns which env-runners hang; call it often.

        Args:
            busy: Env-runners that have something to do. The silence of others ends.
        """
        now = time.monotonic()
        # A driver that was stopped itself has not seen what the others did meanwhile.
        passed = min(now - self._looked_at, self.silence_s / (2 * _LOOKS))
        self._looked_at = now
        self._silences = {env_runner: self._silences.get(env_runner, _Silence()) for env_runner in busy}
        return [
            env_runner for env_runner, silence in self._silences.items() if self._is_hung(env_runner, silence, passed)
        ]

    def _is_hung(self, env_runner: int, silence: _Silence, passed: float) -> bool:
        silence.seconds += passed
        if silence.seconds < (silence.looks + 1) * self.silence_s / _LOOKS:
            return False
        sign = self._read(env_runner)
        if sign != silence.sign:
            self._silences[env_runner] = _Silence(sign=sign)
            return False
        silence.looks += 1
        return silence.looks >= _LOOKS


def sign_of(group: Any, env_runner: int) -> str | None:
    """Returns the last sign of an env-runner in Ray's store; None: it has given none, or the store does not answer."""
    key = heartbeat_key(group, env_runner)
    with suppress(Exception):
        return None if key is None else read_value(key)
    return None


def answered_since(before: str | None, sign: str | None) -> int:
    """Returns the number of answered held-out prompts in a sign, if it is of another evaluation than the one before; else 0."""
    if sign is None:
        return 0
    *_, evaluation, answered = sign.split()
    return int(answered) if before is None or before.split()[-2] != evaluation else 0
