"""Time left, by a clock of the test's own and numbers worked by hand."""

from __future__ import annotations

import pytest

from tppo_rl.experiment.time_left import Pace, minutes


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def result(iteration: int, tokens: int = 0) -> dict[str, float]:
    return {"training_iteration": iteration, "num_env_steps_sampled_lifetime": tokens}


def test_the_first_update_says_how_long_the_others_take() -> None:
    clock = Clock()
    pace = Pace({"training_iteration": 11}, clock=clock)
    assert pace.left(result(0)) is None
    clock.now = 100.0  # engines and the first evaluation
    pace.begin()
    clock.now = 103.0
    assert pace.left(result(1)) == pytest.approx(30.0)


def test_the_limit_that_comes_first_counts() -> None:
    clock = Clock()
    pace = Pace({"training_iteration": 100, "num_env_steps_sampled_lifetime": 500}, clock=clock)
    pace.begin()
    clock.now = 10.0
    assert pace.left(result(1, tokens=100)) == pytest.approx(40.0)
    assert pace.left(result(2, tokens=500)) == 0.0


def test_a_resumed_run_has_the_pace_of_its_own_updates() -> None:
    clock = Clock()
    pace = Pace({"training_iteration": 60}, clock=clock)
    pace.resume(result(50))
    pace.begin()
    clock.now = 2.0
    assert pace.left(result(51)) == pytest.approx(18.0)


def test_evaluations_to_come_are_in_it_and_those_that_were_do_not_slow_the_pace() -> None:
    clock = Clock()
    pace = Pace({"training_iteration": 25}, every=10, clock=clock)
    pace.evaluated("sampled", 20.0)
    pace.evaluated("greedy", 10.0)
    pace.begin()
    clock.now = 5.0
    # 20 updates of 1 s; evaluations after 10 and 20, and one after the last
    assert pace.left(result(5)) == pytest.approx(20.0 + 3 * 30.0)
    clock.now = 10.0 + 30.0
    pace.evaluated("sampled", 20.0)
    pace.evaluated("greedy", 10.0)
    assert pace.left(result(10)) == pytest.approx(15.0 + 2 * 30.0)


def test_a_limit_of_seconds_counts_down_whatever_the_pace() -> None:
    clock = Clock()
    pace = Pace({"time_total_s": 600.0, "training_iteration": 1000}, clock=clock)
    pace.evaluated("sampled", 50.0)
    clock.now = 150.0
    pace.begin()
    clock.now = 160.0
    # The first iteration has the start in its time.
    assert pace.left(result(1) | {"time_total_s": 160.0}) == pytest.approx(440.0 + 50.0)


def test_no_limit_that_came_nearer_gives_no_time() -> None:
    pace = Pace({"heldout_latest/sampled/accuracy": 0.9})
    pace.begin()
    assert pace.left(result(3)) is None


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0:00"), (75, "1:15"), (3600, "1:00:00"), (7384.9, "2:03:04")])
def test_minutes(seconds: float, words: str) -> None:
    assert minutes(seconds) == words
