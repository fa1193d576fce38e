"""The calculator: calls, answers, rewards of turns, and ends."""

from typing import Any

import pytest

from tppo_rl.envs.calculator import Calculator, calculate, work_out


def in_episode(**config: Any) -> tuple[Calculator, dict[str, Any]]:
    env = Calculator(**config)
    return env, env.reset(seed=3)[1]


def test_a_problem_is_worked_out_from_left_to_right() -> None:
    problem = work_out((37, 46, 58, 90), "*+-")
    assert problem.prompt == "37*46+58-90="
    assert problem.calls == ("[37*46]", "[1702+58]", "[1760-90]")
    assert problem.details["worked_turns"] == (*problem.calls, "#1670")
    assert problem.details["early_turns"] == (("[37*46]", "#1702"), ("[37*46]", "[1702+58]", "#1760"))


def test_values_are_those_of_the_expression() -> None:
    env = Calculator(max_operations=6)
    for seed in range(300):
        prompt, info = env.reset(seed=seed)
        assert eval(prompt.removesuffix("=")) == int(info["answer"])


def test_worked_turns_are_right_and_early_ones_are_wrong_wherever_the_values_differ() -> None:
    env = Calculator()
    for seed in range(100):
        _, info = env.reset(seed=seed)
        steps = [env.step(turn) for turn in info["worked_turns"]]
        assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
        assert steps[-1][1] == 1.0
        assert steps[-2][0] == info["answer"]
        for turns in info["early_turns"]:
            env.reset(seed=seed)
            assert [env.step(turn) for turn in turns][-1][4]["correct"] is (turns[-1] == f"#{info['answer']}")


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ("[2*3]", "6"),
        ("[-2*-3]", "6"),
        ("[5--3]", "8"),
        (" [5-8]\n", "-3"),
        ("[007+0]", "7"),
        (f"[{'9' * 18}*{'9' * 18}]", str(calculate(int("9" * 18), "*", int("9" * 18)))),
    ],
)
def test_calls(call: str, answer: str) -> None:
    env, _ = in_episode()
    assert env.step(call)[:4] == (answer, 0.0, False, False)


@pytest.mark.parametrize(
    "turn",
    ["", "[2*3", "2*3", "[2*3]#6", "[2/3]", "[2*3*4]", "[2**3]", "[\u0662*3]", "[2.5+1]", f"[1{'0' * 18}+1]", "so #5"],
)
def test_what_is_no_call(turn: str) -> None:
    env, _ = in_episode(no_call_reward=-0.25)
    assert env.step(turn)[:4] == ("no call", -0.25, False, False)


def test_each_operation_is_rewarded_once() -> None:
    env, info = in_episode(min_operations=3, max_operations=3, call_reward=0.5, max_turns=9)
    first, second = info["worked_turns"][:2]
    rewards = [env.step(turn)[1] for turn in (first, first, "[1+1]", second, second)]
    assert rewards == [0.5, 0.0, 0.0, 0.5, 0.0]
    env.reset(seed=3)
    assert env.step(first)[1] == 0.5


def test_spent_turns_end_the_episode_as_wrong() -> None:
    env, info = in_episode(min_operations=1, max_operations=1, max_turns=2)
    assert env.step(info["worked_turns"][0])[2] is False
    assert env.step(info["worked_turns"][0])[1:3] == (0.0, True)


@pytest.mark.parametrize("answer", ["#", "#6.0", "# 6", "#06"])
def test_answers_are_digit_for_digit(answer: str) -> None:
    env = Calculator(min_operations=1, max_operations=1, max_number=6)
    seed = next(seed for seed in range(2000) if env.reset(seed=seed)[1]["answer"] == "6")
    assert env.step(answer)[4]["correct"] is False
    env.reset(seed=seed)
    assert env.step("#6")[4]["correct"] is True


@pytest.mark.parametrize(
    ("option", "remedy"),
    [
        ({"max_operations": 17}, "1 to 16"),
        ({"min_operations": 6}, "1 to max_operations, which is 5"),
        ({"max_number": 0}, "1 to"),
        ({"max_turns": 5}, "6 or more"),
        ({"call_reward": float("nan")}, "finite"),
        ({"no_call_reward": "none"}, "finite"),
    ],
)
def test_bad_options(option: dict[str, Any], remedy: str) -> None:
    key = next(iter(option))
    with pytest.raises(ValueError, match=f"^{key}=.*{remedy}"):
        Calculator(**option)
