from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.config.options import Options
from tppo_rl.rollout.rewards import Response, Rewards, overlong_penalty


@pytest.mark.parametrize(
    ("length", "penalty"), [(1, 0.0), (16, 0.0), (17, -0.25), (18, -0.5), (20, -1.0), (21, -1.0), (99, -1.0)]
)
def test_penalty_by_hand(length: int, penalty: float) -> None:
    assert overlong_penalty(length, cap=20, buffer=4) == pytest.approx(penalty)


@given(st.integers(1, 200), st.integers(1, 100), st.integers(1, 100))
def test_penalty_never_rises_with_length(length: int, cap: int, buffer: int) -> None:
    here = overlong_penalty(length, cap=cap, buffer=buffer)
    assert -1.0 <= overlong_penalty(length + 1, cap=cap, buffer=buffer) <= here <= 0.0


def response(correct: bool | None = True, *, length: int = 9, truncated: bool = False, **columns: Any) -> Response:
    return Response("what?", "that", [1, 2], length, 0.3, correct, truncated, columns)


def rewards(spec: Any, **options: Any) -> Rewards:
    return Rewards.of(Options.of(rewards=spec, max_response_length=20, **options))


@pytest.mark.parametrize(
    ("name", "turn", "right", "wrong"),
    [("environment", 0.3, 0.0, 0.0), ("zero_one", 0.0, 1.0, 0.0), ("plus_minus_one", 0.0, 1.0, -1.0)],
)
def test_rewards_by_name(name: str, turn: float, right: float, wrong: float) -> None:
    by_name = rewards(name)
    assert by_name.of_turn(0.3) == turn
    assert by_name.of_episode(response(True)) == right
    assert by_name.of_episode(response(False)) == wrong
    assert by_name.of_episode(response(None, truncated=True)) == wrong, "what did not end is not right"


def test_an_ended_episode_must_be_right_or_wrong() -> None:
    with pytest.raises(ValueError, match=r"rewards='zero_one': .*info\['correct'\]"):
        rewards("zero_one").of_episode(response(None))
    assert rewards("environment").of_episode(response(None)) == 0.0


def test_the_penalty_is_added_to_the_reward() -> None:
    penalized = rewards("plus_minus_one", overlong_fraction=0.2)
    assert penalized.of_episode(response(True, length=18)) == pytest.approx(0.5)
    assert penalized.of_episode(response(False, length=20)) == pytest.approx(-2.0)
    assert rewards("environment", overlong_fraction=0.2).of_episode(response(True, length=20)) == -1.0


def length_reward(completions: list[str], answer: list[str], *, scale: float = 1.0, **kwargs: Any) -> list[float]:
    """As TRL's reward functions are written."""
    return [scale * len(text) + float(text == right) for text, right in zip(completions, answer, strict=True)]


def test_a_function_of_the_user_gets_the_columns() -> None:
    own = rewards({"type": f"{__name__}:length_reward", "scale": 0.5})
    assert own.of_turn(1.0) == 0.0
    assert own.of_episode(response(answer="that")) == 3.0
    assert own.of_episode(response(answer="this")) == 2.0


def broken_reward(completions: list[str], *, value: Any = None, **kwargs: Any) -> Any:
    return value


@pytest.mark.parametrize("value", [[None], [float("nan")], ["1"], [1.0, 2.0], 1.0, [True], []])
def test_what_is_no_number_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match="broken_reward': must return one finite number for each response"):
        rewards({"type": f"{__name__}:broken_reward", "value": value}).of_episode(response())
