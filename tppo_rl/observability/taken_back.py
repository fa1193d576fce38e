"""What a resume takes back: iterations after the checkpoint, of which a run's files must not speak any longer.

Most are made again and written anew. Not all: an iteration that samples nothing writes no rollouts, and a run may end before it comes
to them. So their files are removed when the run goes on. Results and spans stay, for time has passed.
"""

from __future__ import annotations

import json
from pathlib import Path

from tppo_rl.core.paths import EPISODES, ROLLOUTS
from tppo_rl.core.whole_files import write_whole
from tppo_rl.observability.batch_log import FOLDER as BATCHES
from tppo_rl.observability.boundary_errors import FILE as BOUNDARY_ERRORS

_NUMBERED = {ROLLOUTS: ("iteration",), EPISODES: ("iteration", "heldout"), BATCHES: ("iteration",)}
"""Folders, and the beginnings of names that a number of updates follows."""


def forget_later(folder: Path, iteration: int) -> None:
    """Removes what a run's folder has of iterations after the given one.

    Args:
        folder: Of the run.
        iteration: Of the checkpoint that the run goes on from.
    """
    for name, kinds in _NUMBERED.items():
        for kind in kinds:
            for file in (folder / name).glob(f"{kind}_*.parquet"):
                number = file.stem.removeprefix(f"{kind}_")
                if number.isdecimal() and int(number) > iteration:
                    file.unlink()
    errors = folder / BOUNDARY_ERRORS
    if errors.is_file():
        lines = errors.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [line for line in lines if (written := _iteration_of(line)) is not None and written <= iteration]
        if len(kept) < len(lines):
            write_whole(errors, "".join(kept))


def _iteration_of(line: str) -> int | None:
    """Iteration of a line; None for what a kill in the midst of writing has left."""
    try:
        return int(json.loads(line)["training_iteration"])
    except ValueError:
        return None
