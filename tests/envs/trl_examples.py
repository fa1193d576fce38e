"""Environments that were written for TRL: a file of the user's, which imports nothing of this package."""

from __future__ import annotations


class Safe:
    """A safe with a code that can be felt out."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    @property
    def broken(self) -> str:
        raise RuntimeError("a property is no tool, and nobody reads it")

    def reset(self, code: int, prompt: object = None, **columns: object) -> str:
        self._code = code
        self._open = False
        self.columns = {"code": code, "prompt": prompt, **columns}
        return f" The safe has {len(str(code))} digits."

    def try_code(self, code: int) -> str:
        """
        Try a code.

        Args:
            code: The code to try.

        Returns:
            Whether the safe opened.
        """
        if not isinstance(code, int):
            raise TypeError("a code is a number")
        self._open = self._open or code == self._code
        return "open" if self._open else "closed"

    async def listen(self) -> dict[str, int]:
        """Listen for the last digit."""
        return {"last": self._code % 10}

    def get_reward(self) -> float:
        return 2.0 if self._open else -0.5


class Notes:
    """No reward of its own."""

    def reset(self, **columns: object) -> None:
        self._notes: list[str] = []

    def write(self, text: str) -> str:
        """Write a note.

        Args:
            text: What to write.
        """
        self._notes.append(text)
        return f"{len(self._notes)} notes"


class Untyped(Notes):
    def look(self, where):  # type: ignore[no-untyped-def]
        """Look somewhere.

        Args:
            where: Where to.
        """


class BadReward(Notes):
    def get_reward(self) -> float:
        return float("nan")


class NeedsMore(Notes):
    def __init__(self, more: int) -> None:
        pass


class NoReset:
    pass


ROOMS = {"safe": Safe, "notes": Notes}
