"""Paths that users write. A text that no path can have, such as one of thousands of characters, names nothing that exists."""

from __future__ import annotations

from pathlib import Path

ROLLOUTS = "rollouts"
"""Folder of a run with a sample of its fragments, a Parquet file for each iteration."""
EPISODES = "episodes"
"""Folder of a run with whole episodes: Parquet files of iterations, and of evaluations."""


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
