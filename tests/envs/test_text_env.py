"""What every environment promises, checked on all registered ones."""

import importlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from data_sets import write_lines
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st

from tppo_rl.envs import ENTRY_POINTS, register_envs
from tppo_rl.envs.text_env import HELDOUT_FRACTION, AnyText, Problem, Reply, TextEnv, split_of

ENVS = sorted(set(ENTRY_POINTS) - {"tppo_rl/OpenEnv-v0", "tppo_rl/Verifiers-v0"})
"""Those that need a server or a package of others, and give no gold answers, have tests of their own."""


@pytest.fixture(scope="module", autouse=True)
def compiled_tasks() -> None:
    """Packages of reasoning-gym's tasks warn when they are compiled, which is not what the tests ask about."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("reasoning_gym")


@pytest.fixture(scope="module", autouse=True)
def questions(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data set has no questions of its own: it gets a file for the tests of this module."""
    rows = ({"prompt": f"double {k}", "answer": 2 * k} for k in range(400))
    source = write_lines(tmp_path_factory.mktemp("data") / "rows.jsonl", rows)
    CONFIGS["tppo_rl/Dataset-v0"] = {"source": source, "answer": "answer"}
    factory = f"{Path(__file__).with_name('trl_examples.py')}:Notes"
    CONFIGS["tppo_rl/TRLEnvironment-v0"] = {"source": source, "answer": "answer", "factory": factory}
    yield
    CONFIGS.clear()


CONFIGS: dict[str, dict[str, Any]] = {}
"""Options that an environment needs."""


def make(env_id: str, **config: Any) -> TextEnv[Any]:
    env = gymnasium.make(env_id, **CONFIGS.get(env_id, {}), **config).unwrapped
    assert isinstance(env, TextEnv)
    return env


def gold_answer(env: TextEnv[Any], info: dict[str, Any]) -> str:
    """The last turn of an episode that is right."""
    if "secret" in info:
        return str(info["secret"])
    return info["worked_turns"][-1] if "worked_turns" in info else info["worked_solution"]


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("env_id", ENVS)
@pytest.mark.filterwarnings("error")
def test_gymnasium_checker(env_id: str, split: str) -> None:
    check_env(make(env_id, split=split))


@pytest.mark.parametrize("env_id", ENVS)
def test_make_imports_the_package_by_itself(env_id: str) -> None:
    assert isinstance(gymnasium.make(f"tppo_rl.envs:{env_id}", **CONFIGS.get(env_id, {})).unwrapped, TextEnv)


@pytest.mark.filterwarnings("error")
def test_registering_twice_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_envs()
    assert gymnasium.registry == before


@pytest.mark.parametrize("env_id", ENVS)
def test_a_problem_is_a_function_of_its_seed(env_id: str) -> None:
    first, second = make(env_id), make(env_id)
    first.reset(seed=5)
    first.step("some answer")
    resets = [first.reset(seed=seed) for seed in range(20)]
    assert resets == [second.reset(seed=seed) for seed in range(20)]
    assert len({prompt for prompt, _ in resets}) > 10


@pytest.mark.parametrize("env_id", ENVS)
def test_a_reset_without_seed_goes_on_and_names_its_problem(env_id: str) -> None:
    env = make(env_id)
    env.reset(seed=5)
    following = [env.reset() for _ in range(5)]
    env.reset(seed=5)
    assert [env.reset() for _ in range(5)] == following
    for prompt, info in following:
        assert env.reset(seed=info["problem_seed"]) == (prompt, info)


@pytest.mark.parametrize("split", ["train", "heldout"])
@pytest.mark.parametrize("env_id", ENVS)
def test_gold_answer_is_correct(env_id: str, split: str) -> None:
    env = make(env_id, split=split, correct_reward=2.0, wrong_reward=-1.0)
    for seed in range(20):
        _, info = env.reset(seed=seed)
        _, reward, terminated, truncated, info = env.step(gold_answer(env, info))
        assert (reward, terminated, truncated, info["correct"], info["score"]) == (2.0, True, False, True, 1.0)


@pytest.mark.parametrize("response", ["", "#", "no idea", "<answer></answer>", "#¾", "<answer>\x00</answer>"])
@pytest.mark.parametrize("env_id", ENVS)
def test_wrong_answer_gets_the_wrong_reward(env_id: str, response: str) -> None:
    env = make(env_id, correct_reward=2.0, wrong_reward=-1.0)
    env.reset(seed=0)
    terminated = False
    while not terminated:
        _, reward, terminated, truncated, info = env.step(response)
        assert not truncated
        assert reward == (-1.0 if terminated else 0.0)
    assert info["correct"] is False


@pytest.mark.parametrize("env_id", ENVS)
def test_splits_share_no_prompt(env_id: str) -> None:
    draws = 800 if "ReasoningGym" in env_id else 3000
    env, heldout = make(env_id), make(env_id, split="heldout")
    train_prompts = {env.reset(seed=seed)[0] for seed in range(draws)}
    heldout_prompts = {heldout.reset(seed=seed)[0] for seed in range(draws // 4)}
    assert not train_prompts & heldout_prompts
    assert all(split_of(prompt, 0) == "train" for prompt in train_prompts)
    assert len(heldout_prompts) > 30


def test_split_seed_moves_prompts_between_the_splits() -> None:
    prompts = {make("tppo_rl/ArithmeticChain-v0", split="heldout").reset(seed=seed)[0] for seed in range(200)}
    kept = sum(split_of(prompt, 1) == "heldout" for prompt in prompts)
    assert 0 < kept < 50


def test_share_of_heldout_prompts() -> None:
    share = sum(split_of(f"prompt {number}", 7) == "heldout" for number in range(20_000)) / 20_000
    assert share == pytest.approx(HELDOUT_FRACTION, abs=0.01)


def test_split_is_the_same_on_every_machine() -> None:
    heldout = [digit for digit in range(10) if split_of(f"a{digit}=", 3) == "heldout"]
    assert heldout == [0, 2, 7]


@pytest.mark.parametrize("env_id", ENVS)
def test_step_needs_a_reset(env_id: str) -> None:
    env = make(env_id)
    with pytest.raises(ResetNeeded, match=r"reset\(\)"):
        env.step("")
    _, info = env.reset(seed=0)
    env.step(gold_answer(env, info))
    with pytest.raises(ResetNeeded, match="end"):
        env.step("")


class Unscored(TextEnv[Problem]):
    """Ends after the first turn and does not say what is right."""

    def candidates(self, rng: np.random.Generator) -> Iterator[Problem]:
        while True:
            yield Problem(str(rng.integers(1000)))

    def respond(self, problem: Problem, text: str, turn: int) -> Reply:
        return Reply(ends=True)


def test_an_episode_may_end_without_a_score() -> None:
    env = Unscored(correct_reward=2.0, wrong_reward=-1.0)
    env.reset(seed=0)
    assert env.step("x") == ("", 0.0, True, False, {})
    assert env.num_problems is None
    with pytest.raises(ResetNeeded, match="end"):
        env.step("x")


class Stopping(Unscored):
    """Gives a reward in every turn; the second turn is the last, and the task is not over then."""

    def respond(self, problem: Problem, text: str, turn: int) -> Reply:
        return Reply("on", reward=0.5) if turn == 0 else Reply(ends=True, truncated=True, reward=-2.0, correct=False)


def test_rewards_of_turns_and_a_limit_of_the_tasks_own() -> None:
    env = Stopping()
    env.reset(seed=0)
    assert env.step("x") == ("on", 0.5, False, False, {})
    assert env.step("x") == ("", -2.0, False, True, {"correct": False})
    with pytest.raises(ResetNeeded, match="end"):
        env.step("x")


def test_an_action_must_be_text() -> None:
    env = make("tppo_rl/ArithmeticChain-v0")
    env.reset(seed=0)
    with pytest.raises(TypeError, match="bytes"):
        env.step(b"#1")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("split", "test"),
        ("split_seed", -1),
        ("split_seed", 1.5),
        ("split_seed", True),
        ("correct_reward", float("nan")),
        ("correct_reward", -0.5),
        ("wrong_reward", "0"),
        ("wrong_reward", 1.0),
    ],
)
@pytest.mark.parametrize("env_id", ENVS)
def test_bad_common_options(env_id: str, key: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"(?s)({key}={value!r}|wrong_reward, which is {value!r}).*"):
        make(env_id, **{key: value})


@settings(deadline=None)
@given(st.text())
def test_space_holds_any_text(text: str) -> None:
    assert text in AnyText(len(text))
    assert text + "x" not in AnyText(len(text))


def test_space_holds_only_text() -> None:
    assert 3 not in AnyText()
    assert AnyText(5).sample() in AnyText(5)
