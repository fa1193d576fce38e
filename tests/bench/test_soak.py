"""What grows in a long run, on series that are known."""

from __future__ import annotations

import numpy as np
import pytest

from tppo_rl.bench.soak import Sample, slopes
from tppo_rl.core.errors import RunError


def series(
    per_hour: float, *, noise: float = 1.0, count: int = 240, quantity: str = "private memory, driver"
) -> list[Sample]:
    generator = np.random.default_rng(4)
    seconds = 5.0 * np.arange(count)
    values = 500 + per_hour * seconds / 3600 + generator.normal(0, noise, count)
    return [Sample(float(at), {quantity: float(value)}) for at, value in zip(seconds, values, strict=True)]


@pytest.mark.parametrize(("per_hour", "grows"), [(0.0, False), (5.0, False), (60.0, True), (-60.0, False)])
def test_what_rises_is_found_and_noise_is_not(per_hour: float, grows: bool) -> None:
    (slope,) = slopes(series(per_hour))
    assert slope.low <= per_hour <= slope.high
    assert slope.grows == grows


def test_files_that_are_not_closed_are_found() -> None:
    (slope,) = slopes(series(30.0, noise=0.5, quantity="open files, env-runner"))
    assert (slope.unit, slope.grows) == ("files", True)


def test_a_process_that_was_not_known_in_some_samples_counts() -> None:
    samples = [
        Sample(one.seconds, {"threads, driver": 5.0} if place % 30 == 0 else one.values)
        for place, one in enumerate(series(60.0))
    ]
    (slope,) = slopes(samples)
    assert (slope.quantity, slope.grows) == ("private memory, driver", True)


def test_what_happens_at_the_start_and_at_the_end_does_not_count() -> None:
    samples = series(0.0)
    start = [Sample(-5.0 * (60 - index), {"private memory, driver": 5.0 * index}) for index in range(60)]
    end = [Sample(samples[-1].seconds + 5, {"private memory, driver": 9.0, "threads, driver": 1.0})] * 2
    (slope,) = slopes([*start, *samples, *end])
    assert not slope.grows
    assert slope.level == pytest.approx(500, abs=1)


def test_what_never_changes_has_no_slope() -> None:
    (slope,) = slopes(series(0.0, noise=0.0, quantity="threads, driver"))
    assert (slope.per_hour, slope.low, slope.high, slope.grows) == (0.0, 0.0, 0.0, False)


def test_a_short_run_says_nothing() -> None:
    with pytest.raises(RunError, match="let the run last longer"):
        slopes(series(0.0, count=20))
