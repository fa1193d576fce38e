"""Paths that users write. A text that no path can have, such as one of thousands of characters, names nothing that exists."""

from __future__ import annotations

from pathlib import Path


def exists(path: Path) -> bool:
    """Whether there is a file or folder."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def expanded(text: str) -> Path:
    """Returns the path of a text, with a home folder for `~`; what names no user's home stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)
