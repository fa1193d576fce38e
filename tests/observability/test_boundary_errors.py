from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tppo_rl.core.boundaries import Boundary, ClosedBoundary
from tppo_rl.observability.boundary_errors import (
    BoundaryErrors,
    append_boundary_errors,
    position_bin_width,
    read_boundary_errors,
    sum_boundary_errors,
)


def some_boundaries(count: int) -> list[ClosedBoundary]:
    rng = np.random.default_rng(0)
    return [
        ClosedBoundary(
            int(rng.integers(4)),
            Boundary(*rng.normal(size=3).tolist()),
            float(rng.normal()),
            int(rng.integers(1, 60)),
            0,
        )
        for _ in range(count)
    ]


def test_worked_by_hand() -> None:
    boundaries = [
        ClosedBoundary(
            1, Boundary(held=0.25, bootstrap=0.5, window_mean=0.0), return_after=1.0, position=16, episode_id=0
        ),
        ClosedBoundary(
            0, Boundary(held=0.5, bootstrap=1.0, window_mean=0.0), return_after=0.0, position=8, episode_id=0
        ),
        ClosedBoundary(
            1, Boundary(held=0.5, bootstrap=0.5, window_mean=0.0), return_after=0.0, position=19, episode_id=0
        ),
    ]
    first, second = sum_boundary_errors(boundaries, bin_width=10)
    assert first == BoundaryErrors(0, 0, 1, held=0.5, bootstrap=1.0, step=0.5, held_squared=0.25, bootstrap_squared=1.0)
    assert second == BoundaryErrors(
        1, 1, 2, held=0.75 + 0.5, bootstrap=0.5 + 0.5, step=0.25, held_squared=0.5625 + 0.25, bootstrap_squared=0.5
    )


def test_equals_a_plain_loop() -> None:
    boundaries = some_boundaries(500)
    cells = sum_boundary_errors(boundaries, bin_width=7)
    assert [(cell.window_index, cell.position_bin) for cell in cells] == sorted(
        {(boundary.window_index, boundary.position // 7) for boundary in boundaries}
    )
    for cell in cells:
        count = held = bootstrap = step = held_squared = bootstrap_squared = 0.0
        for boundary in boundaries:
            if boundary.window_index == cell.window_index and 7 * cell.position_bin <= boundary.position < 7 * (
                cell.position_bin + 1
            ):
                count += 1
                held += abs(boundary.values.held - boundary.return_after)
                bootstrap += abs(boundary.values.bootstrap - boundary.return_after)
                step += abs(boundary.values.bootstrap - boundary.values.held)
                held_squared += (boundary.values.held - boundary.return_after) ** 2
                bootstrap_squared += (boundary.values.bootstrap - boundary.return_after) ** 2
        assert cell.count == count
        assert (cell.held, cell.bootstrap, cell.step) == pytest.approx((held, bootstrap, step))
        assert (cell.held_squared, cell.bootstrap_squared) == pytest.approx((held_squared, bootstrap_squared))


def test_an_iteration_that_was_repeated_after_a_resume_counts_once(tmp_path: Path) -> None:
    lost = sum_boundary_errors(some_boundaries(3), 10)
    kept = sum_boundary_errors(some_boundaries(5), 10)
    append_boundary_errors(tmp_path, 1, 10, kept)
    append_boundary_errors(tmp_path, 2, 10, lost)
    append_boundary_errors(tmp_path, 2, 10, kept)
    assert read_boundary_errors(tmp_path) == (10, {1: kept, 2: kept})


def test_a_run_without_the_file_has_no_errors(tmp_path: Path) -> None:
    assert read_boundary_errors(tmp_path) == (0, {})


@pytest.mark.parametrize(("cap", "width"), [(320, 10), (321, 11), (20, 1)])
def test_all_positions_find_a_bin(cap: int, width: int) -> None:
    assert position_bin_width(cap) == width
    assert (cap - 1) // width < 32
