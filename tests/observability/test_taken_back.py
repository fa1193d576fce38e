"""Files of iterations that a resume takes back."""

from __future__ import annotations

from pathlib import Path

from tppo_rl.observability.boundary_errors import BoundaryErrors, append_boundary_errors, read_boundary_errors
from tppo_rl.observability.taken_back import forget_later

CELL = BoundaryErrors(0, 0, 1, 0.5, 0.25, 0.25, 0.25, 0.0625)


def test_files_of_later_iterations_are_gone_and_others_stay(tmp_path: Path) -> None:
    names = [
        *(f"rollouts/iteration_{number:06d}.parquet" for number in (1, 2, 3, 12)),
        *(f"episodes/iteration_{number:06d}.parquet" for number in (2, 4)),
        *(f"episodes/heldout_{number:06d}.parquet" for number in (0, 2, 3)),
        *(f"batches/iteration_{number:06d}.parquet" for number in (1, 2, 3)),
        "batches/iteration_copy.parquet",
        "batches/run.json",
        "result.json",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    forget_later(tmp_path, 2)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {
        "rollouts/iteration_000001.parquet",
        "rollouts/iteration_000002.parquet",
        "episodes/iteration_000002.parquet",
        "episodes/heldout_000000.parquet",
        "episodes/heldout_000002.parquet",
        "batches/iteration_000001.parquet",
        "batches/iteration_000002.parquet",
        "batches/iteration_copy.parquet",
        "batches/run.json",
        "result.json",
    }


def test_boundary_errors_of_later_iterations_are_gone(tmp_path: Path) -> None:
    for iteration in (1, 2, 3, 4):
        append_boundary_errors(tmp_path, iteration, 8, [CELL])
    with (tmp_path / "boundary_errors.jsonl").open("a", encoding="utf-8") as file:
        file.write(
            '{"training_iteration": 5, "bin{"training_iteration": 2, "bin_width": 8, "cells": []}\n{"training_it'
        )
    forget_later(tmp_path, 2)
    # Iteration 3 has no ended episode this time.
    append_boundary_errors(tmp_path, 4, 8, [CELL, CELL])
    width, cells = read_boundary_errors(tmp_path)
    assert (width, {iteration: len(of) for iteration, of in cells.items()}) == (8, {1: 1, 2: 1, 4: 2})


def test_a_run_without_such_files_is_left_alone(tmp_path: Path) -> None:
    forget_later(tmp_path, 0)
    assert list(tmp_path.iterdir()) == []
