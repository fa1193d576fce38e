"""Tasks of the reasoning-gym package behind the common contract."""

from typing import Any

import pytest
from gymnasium.error import ResetNeeded
from reasoning_gym.utils import extract_answer

from tppo_rl.envs.reasoning_gym import HASH_ORDERED_TASKS, ReasoningGym, tagged_answer

TASKS = ["chain_sum", "spell_backward", "number_sorting", "gcd", "countdown", "letter_counting", "acre", "word_ladder"]


@pytest.mark.parametrize("task", TASKS)
def test_gold_is_accepted_with_and_without_tag(task: str) -> None:
    env = ReasoningGym(task=task)
    for seed in range(3):
        _, info = env.reset(seed=seed)
        assert env.step(info["worked_solution"])[4]["correct"] is True
        env.reset(seed=seed)
        assert env.step(f"\n {info['answer']} ")[1] == 1.0
        env.reset(seed=seed)
        assert env.step(f"so <answer>x</answer>, no: <answer> {info['answer']}\n</answer> it is")[1] == 1.0


@pytest.mark.parametrize("task", TASKS)
def test_wrong_answer_is_rejected(task: str) -> None:
    env = ReasoningGym(task=task)
    for response in ("", "wrong", "<answer>wrong</answer>", "<answer></answer>"):
        _, info = env.reset(seed=1)
        assert info["answer"] != "wrong"
        _, reward, terminated, _, info = env.step(response)
        assert reward < 0.5
        assert terminated
        assert info["correct"] is False


@pytest.mark.parametrize("task", TASKS)
def test_a_second_env_gives_the_same_problems(task: str) -> None:
    prompts = [ReasoningGym(task=task).reset(seed=seed)[0] for seed in range(4)]
    assert prompts == [ReasoningGym(task=task).reset(seed=seed)[0] for seed in range(4)]
    assert len(set(prompts)) == 4


def test_partial_credit_scales_the_rewards() -> None:
    env = ReasoningGym(task="countdown", correct_reward=3.0, wrong_reward=-1.0)
    env.reset(seed=0)
    _, reward, _, _, info = env.step("<answer>1</answer>")
    assert 0.0 < info["score"] < 1.0
    assert reward == pytest.approx(-1.0 + 4.0 * info["score"])
    assert info["correct"] is False


def test_a_scorer_that_fails_is_reported_and_may_be_asked_again() -> None:
    env = ReasoningGym(task="prime_factorization", wrong_reward=-1.0)
    env.reset(seed=0)
    _, reward, terminated, _, info = env.step("two times x")
    assert (reward, terminated, info["correct"]) == (-1.0, True, False)
    assert "ValueError" in info["scorer_error"]
    assert "ValueError" in env.step("two times x")[4]["scorer_error"]
    _, info = env.reset(seed=0)
    assert env.step("two times x")[4].keys() >= {"scorer_error"}
    assert env.step(info["worked_solution"])[4]["correct"]
    with pytest.raises(ResetNeeded):
        env.step(info["worked_solution"])


def test_a_task_without_gold_answer_has_no_worked_solution() -> None:
    _, info = ReasoningGym(task="graph_color").reset(seed=0)
    assert "worked_solution" not in info
    assert "answer" not in info


def test_task_config_reaches_the_task() -> None:
    prompt, _ = ReasoningGym(task="chain_sum", task_config={"min_terms": 6, "max_terms": 6}).reset(seed=0)
    assert prompt.count(" + ") + prompt.count(" - ") == 5


@pytest.mark.parametrize("task", sorted(HASH_ORDERED_TASKS))
def test_tasks_that_depend_on_the_hash_seed_warn(task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    with pytest.warns(UserWarning, match="PYTHONHASHSEED"):
        ReasoningGym(task=task)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"task": "spel_backwards"}, "task='spel_backwards': .*closest names are spell_backward"),
        ({"task": ""}, "task=''"),
        ({"task": "chain_sum", "task_config": {"size": 5}}, "leave 'size' out"),
        ({"task": "chain_sum", "task_config": {"seed": 5}}, "leave 'seed' out"),
        ({"task": "chain_sum", "task_config": {"terms": 5}}, "task_config={'terms': 5}: .*max_terms"),
        ({"task": "chain_sum", "task_config": {"min_terms": 0}}, "task_config={'min_terms': 0}: .*min_terms"),
    ],
)
def test_bad_options(config: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        ReasoningGym(**config)


@pytest.mark.parametrize(
    "text",
    [
        "", "<answer>", "</answer><answer>", "<answer> 1 </answer>", "a<answer>1</answer><answer>2\n</answer>b<answer>3",
        "<answer><answer>1</answer></answer>", "<answer></answer>", "</answer><answer>1</answer>", "<answer>1</answer", "x",
    ],
)  # fmt: skip
def test_the_answer_is_that_of_reasoning_gyms_own_extraction(text: str) -> None:
    assert tagged_answer(text) == extract_answer(text)


def test_a_task_of_true_and_false_does_not_take_every_text() -> None:
    env = ReasoningGym(task="game_of_life_halting")
    for seed in range(10):
        _, info = env.reset(seed=seed)
        assert env.step(info["worked_solution"])[4]["correct"] is True
        for wrong in ("no idea", str(info["answer"] != "True"), ""):
            env.reset(seed=seed)
            assert env.step(f"<answer>{wrong}</answer>")[4]["correct"] is False


@pytest.mark.parametrize("wrong", ["nan", "NaN", "n a n", "nan + nani", "(nan)"])
def test_what_is_not_a_number_is_not_a_right_one(wrong: str) -> None:
    env = ReasoningGym(task="complex_arithmetic")
    env.reset(seed=0)
    assert env.step(f"<answer>{wrong}</answer>")[4]["correct"] is False
