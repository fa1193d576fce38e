from __future__ import annotations

import re

import pytest

from tppo_rl.envs.reasoning_gym import ReasoningGym
from tppo_rl.envs.reasoning_steps import STEPS, chain_sum_steps, letter_counting_steps


def test_running_sums_by_hand() -> None:
    entry = {"metadata": {"expression": "5 - 9 + 13"}}
    assert chain_sum_steps(entry) == "5-9=-4;-4+13=9;"


def test_letters_by_hand() -> None:
    entry = {"metadata": {"span": ["The", "wEe-", "7"], "target_letter": "e"}}
    assert letter_counting_steps(entry) == "T0h0e1 w1E2e3- 7;"


@pytest.mark.parametrize("task", STEPS)
def test_the_last_step_says_the_answer_and_the_whole_is_right(task: str) -> None:
    env = ReasoningGym(task=task, steps=True)
    bare = ReasoningGym(task=task)
    for seed in range(50):
        prompt, info = env.reset(seed=seed)
        assert prompt == bare.reset(seed=seed)[0]
        steps, _, rest = info["worked_solution"].partition("<answer>")
        assert rest == f"{info['answer']}</answer>"
        said = re.findall(r"(?:=|[a-zA-Z])(-?\d+)", steps)
        assert said[-1] == info["answer"]
        assert env.step(info["worked_solution"])[4]["correct"] is True


def test_a_task_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match=r"steps=True: there are none for task='rotate_matrix'; only for chain_sum"):
        ReasoningGym(task="rotate_matrix", steps=True)
    with pytest.raises(ValueError, match="steps='yes': give true or false"):
        ReasoningGym(task="chain_sum", steps="yes")  # type: ignore[arg-type]
