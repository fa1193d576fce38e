"""Servers on the loopback: OpenEnv's own, where a Python has it, and a stand-in that speaks its protocol."""

from __future__ import annotations

import functools
import http
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from openenv_guessing import Guessing
from websockets.datastructures import Headers
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve

PYTHON = os.environ.get("OPENENV_PYTHON", sys.executable)
"""A Python that has OpenEnv. It may be that of another virtual environment: OpenEnv's own needs do not go with the locked versions."""
TEXT = {"type": "string"}
ACTION = {"properties": {"message": TEXT, "metadata": {"type": "object"}}, "required": ["message"]}
OBSERVATION = {
    "properties": {
        "text": TEXT,
        "out_of_turns": {"type": "boolean"},
        "done": {"type": "boolean"},
        "reward": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    }
}


@functools.cache
def has_openenv() -> bool:
    """Whether that Python has OpenEnv's server."""
    program = "import importlib.util as util, sys; sys.exit(util.find_spec('openenv') is None)"
    return subprocess.run([PYTHON, "-c", program], check=False).returncode == 0


@contextmanager
def real_server(sessions: int = 1) -> Iterator[str]:
    """OpenEnv's own server in a process; gives its place."""
    if not has_openenv():
        pytest.skip(f"{PYTHON} has no openenv-core; OPENENV_PYTHON names a Python that has")
    program = [PYTHON, str(Path(__file__).with_name("openenv_guessing.py")), str(sessions)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


@contextmanager
def stand_in(
    sessions: int = 1, action: Any = None, observation: Any = None, reply: Callable[[Any, Any], Any] | None = None
) -> Iterator[str]:
    """A server in a thread; `reply(message, answer)` may change what it says."""
    schemas = {"action": action or ACTION, "observation": observation or OBSERVATION, "state": {}}
    free = threading.Semaphore(sessions)

    def schema(connection: ServerConnection, request: Request) -> Response | None:
        if request.path != "/schema":
            return None
        body = json.dumps(schemas).encode()
        return Response(http.HTTPStatus.OK, "OK", Headers({"Content-Length": str(len(body))}), body)

    def session(connection: ServerConnection) -> None:
        if not free.acquire(blocking=False):
            full = {"message": "at capacity", "code": "CAPACITY_REACHED"}
            connection.send(json.dumps({"type": "error", "data": full}))
            return
        try:
            game = Guessing()
            for text in connection:
                message = json.loads(text)
                if message["type"] == "close" or message.get("data", {}).get("message") == "leave":
                    return
                answer = _answer(game, message)
                connection.send(json.dumps(answer if reply is None else reply(message, answer)))
        finally:
            free.release()

    with serve(session, "127.0.0.1", 0, process_request=schema) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"


def _answer(game: Guessing, message: Any) -> Any:
    try:
        seen = (
            game.reset(message["data"]["seed"]) if message["type"] == "reset" else game.step(message["data"]["message"])
        )
    except Exception as error:
        return {"type": "error", "data": {"message": str(error), "code": "EXECUTION_ERROR"}}
    done, reward = seen.pop("done"), seen.pop("reward")
    return {"type": "observation", "data": {"observation": seen, "reward": reward, "done": done}}
