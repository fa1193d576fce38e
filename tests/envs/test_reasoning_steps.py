from __future__ import annotations

import re

import pytest

from tppo_rl.envs.reasoning_gym import ReasoningGym
from tppo_rl.envs.reasoning_steps import STEPS, chain_sum_steps, letter_counting_steps, rotate_matrix_steps


def test_running_sums_by_hand() -> None:
    entry = {"metadata": {"expression": "5 - 9 + 13"}}
    assert chain_sum_steps(entry) == [("5-9=-4;", "-4"), ("-4+13=9;", "9")]


def test_letters_by_hand() -> None:
    entry = {"metadata": {"span": ["The", "wEe-", "7"], "target_letter": "e"}}
    assert letter_counting_steps(entry) == [("T0h0e1", "1"), (" w1E2e3-", "3"), (" 7;", "3")]


def test_turns_by_hand() -> None:
    entry = {"metadata": {"matrix": [[1, 2], [3, 4]], "num_rotations": 2}, "answer": "4 3\n2 1"}
    assert rotate_matrix_steps(entry) == [("31|42;", "3 1\n4 2"), ("43|21;", "4 3\n2 1")]
    assert rotate_matrix_steps(entry | {"metadata": {"matrix": [[1]], "num_rotations": 0}, "answer": "1"}) == [
        ("", "1")
    ]


def said_last(task: str, steps: str) -> str:
    """What the last step has found, as an answer; empty without steps."""
    if task == "rotate_matrix":
        return "\n".join(" ".join(row) for row in steps.split(";")[-2].split("|")) if steps else ""
    return re.findall(r"(?:=|[a-zA-Z])(-?\d+)", steps)[-1]


@pytest.mark.parametrize("task", STEPS)
def test_the_last_step_says_the_answer_and_the_whole_is_right(task: str) -> None:
    env = ReasoningGym(task=task, steps=True)
    bare = ReasoningGym(task=task)
    for seed in range(50):
        prompt, info = env.reset(seed=seed)
        assert prompt == bare.reset(seed=seed)[0]
        steps, _, rest = info["worked_solution"].partition("<answer>")
        assert rest == f"{info['answer']}</answer>"
        assert said_last(task, steps) in ("", info["answer"])
        assert env.step(info["worked_solution"])[4]["correct"] is True
        for early in info["early_solutions"]:
            done, _, answer = early.partition("<answer>")
            assert steps.startswith(done)
            assert done != steps
            # A digit to be counted raises the count but is not followed by it: only letters are.
            if not re.search(r'letter "\d"', prompt):
                assert answer == f"{said_last(task, done)}</answer>"


def test_a_task_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"steps=True: there are none for task='lcm'; only for chain_sum"):
        ReasoningGym(task="lcm", steps=True)
    with pytest.raises(ValueError, match="steps='yes': give true or false"):
        ReasoningGym(task="chain_sum", steps="yes")  # type: ignore[arg-type]
