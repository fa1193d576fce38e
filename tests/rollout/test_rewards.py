from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.rollout.rewards import RewardShaping, overlong_penalty


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (20, -1.0), (21, -1.0), (99, -1.0)]
)
def test_penalty_by_hand(length: int, penalty: float) -> None:
    assert overlong_penalty(length, cap=20, buffer=4) == pytest.approx(penalty)


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 100))
def test_penalty_never_rises_with_length(length: int, cap: int, buffer: int) -> None:
    here = overlong_penalty(length, cap=cap, buffer=buffer)
    assert -1.0 <= overlong_penalty(length + 1, cap=cap, buffer=buffer) <= here <= 0.0


@pytest.mark.parametrize(
    ("source", "turn", "right", "wrong"),
    [("environment", 0.3, 0.0, 0.0), ("zero_one", 0.0, 1.0, 0.0), ("plus_minus_one", 0.0, 1.0, -1.0)],
)
def test_verdicts(source: str, turn: float, right: float, wrong: float) -> None:
    shaping = RewardShaping(source)  # type: ignore[arg-type]
    assert shaping.of_turn(0.3) == turn
    assert shaping.of_episode(correct=True, response_length=9) == right
    assert shaping.of_episode(correct=False, response_length=9) == wrong


def test_the_penalty_is_added_to_the_verdict() -> None:
    shaping = RewardShaping("plus_minus_one", max_response_length=20, overlong_buffer=4)
    assert shaping.of_episode(correct=True, response_length=18) == pytest.approx(0.5)
    assert shaping.of_episode(correct=False, response_length=20) == pytest.approx(-2.0)
