from __future__ import annotations

import pytest
from ray.rllib.utils.schedules.scheduler import Scheduler

from tppo_rl.core.schedules import LearningRate, fault, rate_at

SCHEDULE = [[0, 3e-4], [1000, 1e-4], [5000, 0.0]]


@pytest.mark.parametrize("num_tokens", [0, 1, 999, 1000, 3000, 5000, 10**9])
@pytest.mark.parametrize("rate", [2e-4, SCHEDULE])
def test_equals_rllibs_schedule(rate: LearningRate, num_tokens: int) -> None:
    expected = Scheduler(rate, framework="torch").update(num_tokens)
    assert rate_at(rate, num_tokens) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("rate", [0.0, 1e-6, 1, SCHEDULE, ((0, 1e-4), (1, 1e-5))])
def test_finds_no_fault(rate: LearningRate) -> None:
    assert fault(rate) is None


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (-1e-6, "at least 0"),
        (float("nan"), "at least 0"),
        ([], "two or more pairs"),
        ([[0, 1e-4]], "two or more pairs"),
        ([[0, 1e-4], [1]], "two or more pairs"),
        ([[5, 1e-4], [6, 1e-5]], "not at 5"),
        ([[0, 1e-4], [6, 1e-5], [6, 1e-5]], "6 follows 6"),
        ([[0, 1e-4], [6, 1e-5], [5, 1e-5]], "5 follows 6"),
        ([[0, 1e-4], [6, -1e-5]], "-1e-05 is below 0"),
        ([[0, float("nan")], [6, 1e-5]], "nan is below 0"),
    ],
)
def test_names_the_fault(rate: LearningRate, words: str) -> None:
    assert words in str(fault(rate))
