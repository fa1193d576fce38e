"""The guessing game: hints, turns and ends."""

from typing import Any

import pytest

from tppo_rl.envs.guess_number import GuessNumber


def play(env: GuessNumber, guesses: list[str]) -> list[tuple[str, float, bool, bool, dict[str, Any]]]:
    return [env.step(guess) for guess in guesses]


def with_secret(env: GuessNumber, low: int, high: int) -> int:
    """Reset to a problem whose secret lies from low to high."""
    for seed in range(1000):
        _, info = env.reset(seed=seed)
        if low <= info["secret"] <= high:
            return info["secret"]
    raise AssertionError("no such problem")


def test_hints_then_success() -> None:
    env = GuessNumber()
    secret = with_secret(env, 10, 90)
    steps = play(env, [str(secret - 1), f" {secret + 1}\n", str(secret)])
    assert [step[0] for step in steps[:2]] == ["higher", "lower"]
    assert [step[1:4] for step in steps] == [(0.0, False, False), (0.0, False, False), (1.0, True, False)]
    assert steps[-1][4]["correct"] is True
    assert "correct" not in steps[0][4]


def test_spent_guesses_end_the_episode_as_wrong() -> None:
    env = GuessNumber(max_turns=3, wrong_reward=-1.0)
    secret = with_secret(env, 10, 90)
    steps = play(env, [str(secret + 1)] * 3)
    assert [step[2] for step in steps] == [False, False, True]
    assert steps[-1][1] == -1.0
    assert steps[-1][4]["correct"] is False


def test_the_last_guess_may_be_right() -> None:
    env = GuessNumber(max_turns=2)
    secret = with_secret(env, 10, 90)
    assert play(env, ["0", str(secret)])[-1][1:3] == (1.0, True)


@pytest.mark.parametrize("guess", ["", "seven", "-5", "+5", "05", "5.0", "5 6", "\u0665", "1" * 5000, "#5"])
def test_what_is_no_number_costs_a_guess(guess: str) -> None:
    # Among them 5000 digits, which Python refuses to convert.
    env = GuessNumber(max_turns=2)
    secret = with_secret(env, 5, 5)
    assert env.step(guess)[:3] == ("no number", 0.0, False)
    assert env.step(str(secret))[1] == 1.0


def test_halving_always_succeeds_within_the_default_turns() -> None:
    env = GuessNumber()
    for seed in range(300):
        prompt, _ = env.reset(seed=seed)
        low, high = (int(end) for end in prompt.removesuffix("?").split("-"))
        assert 0 <= low < high < 100
        terminated = False
        while not terminated:
            guess = (low + high) // 2
            hint, reward, terminated, _, _ = env.step(str(guess))
            low, high = (guess + 1, high) if hint == "higher" else (low, guess - 1)
        assert reward == 1.0


@pytest.mark.parametrize(("numbers", "turns"), [(2, 2), (3, 2), (7, 3), (8, 4), (100, 7), (127, 7), (128, 8)])
def test_default_turns(numbers: int, turns: int) -> None:
    assert GuessNumber(numbers=numbers).max_turns == turns


@pytest.mark.parametrize(
    ("config", "named"),
    [({"numbers": 1}, "numbers=1"), ({"max_turns": 0}, "max_turns=0"), ({"max_turns": True}, "max_turns=True")],
)
def test_bad_options(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        GuessNumber(**config)


def test_too_few_prompts_for_a_split() -> None:
    env = GuessNumber(numbers=2, split="heldout")
    with pytest.raises(ValueError, match=r"split='heldout': .*split_seed=0"):
        env.reset(seed=0)
