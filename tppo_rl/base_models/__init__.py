"""Small base models that ship with the package, named like hub ids: `tppo_rl/<folder>`."""

from __future__ import annotations

from pathlib import Path

_PREFIX = "tppo_rl/"


def resolve_model(name: str) -> str:
    """Returns the folder of a shipped model, or `name` itself for any other folder or hub id."""
    if name.startswith(_PREFIX):
        folder = Path(__file__).parent / name.removeprefix(_PREFIX)
        try:
            if (folder / "config.json").is_file():
                return str(folder)
        except OSError:
            # A name of thousands of characters is none that a file can have.
            pass
    return name
