"""A session of an OpenEnv server over its websocket, and the schemas that the server publishes.

    {"type": "reset", "data": {"seed": 3}}  ─▶  {"type": "observation", "data": {"observation": {…}, "reward": …, "done": …}}
    {"type": "step", "data": {action}}      ─▶  the same, or {"type": "error", "data": {"message", "code"}}

A connection is a session. Servers serve one at a time unless they are told otherwise, and refuse further ones; then a session is
asked for again, at the next server first, until the deadline.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

_CAPACITY_REACHED = "CAPACITY_REACHED"
_MAX_MESSAGE_BYTES = 16 * 2**20
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.25
_SCHEMA_TIMEOUT_S = 10.0
# Processes begin at different servers.
_turns = itertools.count(os.getpid())
_said: set[Sequence[str]] = set()


class OpenEnvError(RuntimeError):
    """A server refused something, answered against its protocol, or is gone. Whatever it was asked has no result."""


class OpenEnvTimeout(OpenEnvError, TimeoutError):
    """A server did not answer, or had no session free, in time."""


@dataclass(frozen=True)
class Answer:
    """What a server says to a reset or a step.

    Attributes:
        observation: Its fields.
        reward: 0 where the server gives none.
        done: Whether the episode is over.
    """

    observation: Mapping[str, Any]
    reward: float
    done: bool


@lru_cache(maxsize=16)
def schemas_of(url: str) -> Mapping[str, Mapping[str, Any]]:
    """The JSON schemas of a server's actions and observations.

    Raises:
        OSError, ValueError: The server cannot be reached, or answers with something else.
    """
    base = url.replace("ws://", "http://", 1).replace("wss://", "https://", 1)
    with urllib.request.urlopen(f"{base}/schema", timeout=_SCHEMA_TIMEOUT_S) as answer:
        found = json.load(answer)
    if not all(isinstance(found.get(part), Mapping) for part in ("action", "observation")):
        raise ValueError(f"{base}/schema has no schemas of action and observation")
    return dict(found)


class Session:
    """A session; the caller closes it.

    Args:
        urls: Servers, as http:// or ws://, of which any will do.
        connect_timeout_s: Longest wait for a session.
        step_timeout_s: Longest wait for an answer.
        seed: Of the reset with which it begins.

    Raises:
        OpenEnvTimeout: No server had a session free, or none answered in time.
        OpenEnvError: The reset failed.
    """

    def __init__(self, urls: Sequence[str], *, connect_timeout_s: float, step_timeout_s: float, seed: int) -> None:
        self._step_timeout_s = step_timeout_s
        self._connection = ExitStack()
        self.url, self._socket, self.first = self._begin(urls, connect_timeout_s, seed)

    def reset(self, seed: int) -> Answer:
        """Begins another episode.

        Raises:
            OpenEnvError: See `step`.
        """
        return self._ask(self._socket, self.url, {"type": "reset", "data": {"seed": seed}})

    def step(self, action: Mapping[str, Any]) -> Answer:
        """Takes a step.

        Raises:
            OpenEnvTimeout: No answer came in time.
            OpenEnvError: The server refused the action or failed, or the connection is lost.
        """
        return self._ask(self._socket, self.url, {"type": "step", "data": dict(action)})

    def close(self) -> None:
        """Ends the session."""
        with suppress(Exception):
            self._socket.send('{"type": "close"}')
        self._disconnect()

    def _disconnect(self) -> None:
        with suppress(Exception):
            self._connection.close()

    def _begin(self, urls: Sequence[str], timeout_s: float, seed: int) -> tuple[str, Any, Answer]:
        from websockets.exceptions import InvalidHandshake, InvalidURI
        from websockets.sync.client import connect

        until, pause, reason = time.monotonic() + timeout_s, _FIRST_PAUSE_S, ""
        first = next(_turns)
        for attempt in itertools.count():
            url = urls[(first + attempt) % len(urls)]
            left = until - time.monotonic()
            if left <= 0:
                raise OpenEnvTimeout(
                    f"no session within {timeout_s:g} s at {', '.join(urls)} ({reason}); give more servers in `urls`, let them "
                    "serve more sessions at once, or raise connect_timeout_s"
                )
            try:
                place = f"{_as_websocket(url)}/ws"
                opening = connect(place, open_timeout=left, close_timeout=1.0, max_size=_MAX_MESSAGE_BYTES)
                socket = self._connection.enter_context(opening)
            except TimeoutError:
                reason = reason or f"{url} does not answer"
                continue
            except (OSError, InvalidHandshake, InvalidURI) as error:
                reason = f"{url}: {type(error).__name__}: {error}"
            else:
                try:
                    return url, socket, self._ask(socket, url, {"type": "reset", "data": {"seed": seed}})
                except _Full:
                    reason = "all their sessions are taken"
                    self._disconnect()
                    _say_once(urls)
                except BaseException:
                    self._disconnect()
                    raise
            if (attempt + 1) % len(urls) == 0:
                time.sleep(max(0.0, min(pause, until - time.monotonic())))
                pause = min(2 * pause, _LONGEST_PAUSE_S)
        raise AssertionError

    def _ask(self, socket: Any, url: str, message: Mapping[str, Any]) -> Answer:
        from websockets.exceptions import ConnectionClosed

        # A server that is full says so and closes at once: what it said can be read although nothing can be sent.
        with suppress(ConnectionClosed):
            socket.send(json.dumps(message))
        try:
            text = socket.recv(timeout=self._step_timeout_s)
        except TimeoutError:
            raise OpenEnvTimeout(
                f"{url} has not answered a {message['type']} within step_timeout_s={self._step_timeout_s:g}"
            ) from None
        except ConnectionClosed as error:
            raise OpenEnvError(f"{url} has closed the connection at a {message['type']}: {error}") from None
        return _read(url, str(message["type"]), text)


class _Full(OpenEnvError):
    """All sessions of a server are taken."""


def _read(url: str, asked: str, text: str | bytes) -> Answer:
    def refuse(what: str) -> NoReturn:
        raise OpenEnvError(f"{url} answered a {asked} with {what}: {text[:200]!r}")

    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        refuse("what is no JSON")
    data = message.get("data") if isinstance(message, Mapping) else None
    if not isinstance(data, Mapping):
        refuse("a message without data")
    if message.get("type") == "error":
        kind = _Full if data.get("code") == _CAPACITY_REACHED else OpenEnvError
        raise kind(f"{url} failed at a {asked}: {data.get('code')}: {data.get('message')}"[:400])
    observation, reward, done = data.get("observation"), data.get("reward"), data.get("done")
    if message.get("type") != "observation" or not isinstance(observation, Mapping) or not isinstance(done, bool):
        refuse("no observation")
    if reward is not None and not isinstance(reward, bool | int | float):
        refuse("a reward that is no number")
    return Answer(observation, float(reward or 0.0), done)


def _as_websocket(url: str) -> str:
    return url.replace("http://", "ws://", 1).replace("https://", "wss://", 1)


def _say_once(urls: Sequence[str]) -> None:
    key = tuple(urls)
    if key not in _said:
        _said.add(key)
        logger.warning(
            "all sessions of %s are taken: environments take turns. More servers in `urls`, or more sessions at once, make it faster",
            ", ".join(urls),
        )
