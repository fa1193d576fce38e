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
                if int(file.stem.removeprefix(f"{kind}_")) > iteration:
                    file.unlink()
    errors = folder / BOUNDARY_ERRORS
    if errors.is_file():
        lines = errors.read_text(encoding="utf-8").splitlines(keepends=True)
        # A kill may have left half a line.
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["training_iteration"] <= iteration]
        if len(kept) < len(lines):
            write_whole(errors, "".join(kept))
