"""A guessing game for servers of OpenEnv. Run as a program it is a real one: `python openenv_guessing.py SESSIONS`.

It imports nothing of this package: the server has a Python of its own.
"""

from __future__ import annotations

import random
import socket
import sys
import time
from typing import Any

MOST_TURNS = 3


class Guessing:
    """Find a number from 0 to 9 in three turns; some guesses are faults."""

    def reset(self, seed: int | None) -> dict[str, Any]:
        self.number = random.Random(seed).randrange(10)
        self.turns = 0
        return self.see(f"Game {seed}: a number from 0 to 9?", done=False)

    def step(self, guess: str) -> dict[str, Any]:
        if guess == "raise":
            raise RuntimeError("the game is broken")
        if guess == "hang":
            time.sleep(3)
        self.turns += 1
        if guess == str(self.number):
            return self.see("right", done=True, reward=1.0)
        if self.turns == MOST_TURNS:
            return self.see("too late", done=True, reward=-1.0, out_of_turns=True)
        return self.see("higher" if guess < str(self.number) else "lower", done=False, reward=0.25)

    def see(self, text: str, *, done: bool, reward: float | None = None, out_of_turns: bool = False) -> dict[str, Any]:
        return {"text": text, "out_of_turns": out_of_turns, "turns": self.turns, "done": done, "reward": reward}


def main(sessions: int) -> None:
    """Serves the game with OpenEnv's own server, and prints the port."""
    import uvicorn
    from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app

    class Guess(Action):
        message: str

    class Seen(Observation):
        text: str
        out_of_turns: bool = False
        turns: int = 0

    class Game(Environment):
        SUPPORTS_CONCURRENT_SESSIONS = True

        def __init__(self) -> None:
            super().__init__()
            self._game = Guessing()

        def reset(self, seed: int | None = None, episode_id: str | None = None, **kwargs: Any) -> Seen:
            return Seen(**self._game.reset(seed))

        def step(self, action: Guess, timeout_s: float | None = None, **kwargs: Any) -> Seen:
            return Seen(**self._game.step(action.message))

        @property
        def state(self) -> State:
            return State()

    app = create_fastapi_app(Game, Guess, Seen, max_concurrent_envs=sessions)
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    # Who comes before the server is up waits, and is not refused.
    listener.listen()
    print(listener.getsockname()[1], flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="error")).run(sockets=[listener])


if __name__ == "__main__":
    main(int(sys.argv[1]))
