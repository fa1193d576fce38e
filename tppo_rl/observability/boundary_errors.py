"""Errors of the critic at window ends, known once episodes have ended: `boundary_errors.jsonl` in the folder of a run.

A window of an unfinished response ends at state s_l, and G_l is the return that followed. Every boundary whose episode ended
in an iteration gives three distances:

    held  V(s_(l-1)) - G_l         error of the value that EGAE's `hold` uses
    bootstrap  V(s_l) - G_l             error of the value that `bootstrap` uses
    step  V(s_l) - V(s_(l-1))      difference that `hold` neglects

One line of the file is one iteration: sums over its boundaries by window index and position. An iteration that is repeated
after a resume is written again, and the last line counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.core.boundaries import ClosedBoundary

FILE = "boundary_errors.jsonl"
POSITION_BINS = 32
"""Bins of equal width from 0 to `max_response_length`."""


@dataclass(frozen=True)
class BoundaryErrors:
    """Sums over the boundaries of one iteration in one cell, in units of reward."""

    window_index: int
    """Index of the window that ends there, from 0."""
    position_bin: int
    """Tokens between prompt and boundary, divided by the width of a bin and rounded down."""
    count: int
    held: float
    """Sum of |V(s_(l-1)) - G_l|."""
    bootstrap: float
    """Sum of |V(s_l) - G_l|."""
    step: float
    """Sum of |V(s_l) - V(s_(l-1))|."""
    held_squared: float
    bootstrap_squared: float


def position_bin_width(max_response_length: int) -> int:
    """Returns the width of a bin of positions, in tokens."""
    return -(-max_response_length // POSITION_BINS)


def sum_boundary_errors(boundaries: Iterable[ClosedBoundary], bin_width: int) -> list[BoundaryErrors]:
    """Returns the errors of boundaries added up by window index and bin of positions, in that order, without empty cells."""
    cells: dict[tuple[int, int], list[tuple[float, float, float]]] = {}
    for boundary in boundaries:
        held = boundary.values.held - boundary.return_after
        bootstrap = boundary.values.bootstrap - boundary.return_after
        step = boundary.values.bootstrap - boundary.values.held
        cells.setdefault((boundary.window_index, boundary.position // bin_width), []).append((held, bootstrap, step))
    sums = []
    for (window_index, position_bin), errors in sorted(cells.items()):
        values = np.array(errors, np.float64)
        held, bootstrap, step = np.abs(values).sum(axis=0).tolist()
        held_squared, bootstrap_squared, _ = np.square(values).sum(axis=0).tolist()
        sums.append(
            BoundaryErrors(
                window_index, position_bin, len(values), held, bootstrap, step, held_squared, bootstrap_squared
            )
        )
    return sums


def append_boundary_errors(folder: Path, iteration: int, bin_width: int, errors: Sequence[BoundaryErrors]) -> None:
    """Writes the line of one iteration."""
    line = {"training_iteration": iteration, "bin_width": bin_width, "cells": [asdict(cell) for cell in errors]}
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_boundary_errors(folder: Path) -> tuple[int, dict[int, list[BoundaryErrors]]]:
    """Reads the file of a run's folder.

    Returns:
        Width of a bin in tokens, and cells by iteration; 0 and none if the run has written no such file.
    """
    if not (folder / FILE).is_file():
        return 0, {}
    with (folder / FILE).open(encoding="utf-8") as file:
        lines: list[dict[str, Any]] = [json.loads(line) for line in file]
    by_iteration = {line["training_iteration"]: [BoundaryErrors(**cell) for cell in line["cells"]] for line in lines}
    return (lines[-1]["bin_width"] if lines else 0), by_iteration
