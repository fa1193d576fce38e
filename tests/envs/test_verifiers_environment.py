"""Packages of verifiers, both forms: with verifiers itself where it is installed, else with what has its shape."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tppo_rl.envs.text_env import split_of
from tppo_rl.envs.verifiers_environment import Verifiers
from tppo_rl.envs.verifiers_v0 import _reward
from tppo_rl.rollout.dialogs import take_step
from tppo_rl.rollout.responses import Failure

HERE = Path(__file__).parent


def is_installed(form: str) -> bool | None:
    """Whether verifiers has this form; None where it is not installed."""
    if importlib.util.find_spec("verifiers") is None:
        return None
    import verifiers

    return hasattr(verifiers, "SingleTurnEnv") == (form == "v0")


@pytest.fixture(params=["v0", "v1"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    is_there = is_installed(request.param)
    if is_there is False:
        pytest.skip("verifiers is installed in another version")
    if is_there is None and request.param == "v1":
        monkeypatch.syspath_prepend(str(HERE / "verifiers_shape"))
    yield request.param
    if is_there is None:
        for name in [
            name for name in sys.modules if name.split(".")[0] == "verifiers" or "verifiers_v1_example" in name
        ]:
            del sys.modules[name]


def package(form: str) -> str:
    return str(HERE / f"verifiers_{form}_example.py")


def answer_of(info: dict[str, Any]) -> str:
    return str(info["answer"])


def test_rewards_may_be_numbers_of_numpy() -> None:
    parts: Any = [(lambda completion: np.float32(0.25), 2.0, {}), (lambda answer: np.int64(answer + 0), 1.0, {})]
    reward = _reward(parts, [], {"answer": 3}, True, "so")
    assert type(reward) is float
    assert reward == 3.5


def test_rewards_are_the_packages_own_weighted(form: str) -> None:
    env = Verifiers(package=package(form), correct_from=2.0)
    prompt, info = env.reset(seed=3)
    assert prompt == f"Double {int(answer_of(info)) // 2}."
    assert info["messages"] == [{"role": "system", "content": "Be short."}]
    right = env.step(answer_of(info))
    assert right[1:4] == (2.5 if form == "v1" else 2.0, True, False)
    assert right[4] == {"correct": True}
    env.reset(seed=3)
    half = str(int(answer_of(info)) // 2)
    assert env.step(half)[1:] == (0.5, True, False, {"correct": False})


def test_what_a_reward_raises_is_a_failure_and_not_0(form: str) -> None:
    env = Verifiers(package=package(form))
    env.reset(seed=0)
    failure = take_step(env, "raise")
    assert isinstance(failure, Failure)
    assert failure.kind == "scorer_error"
    assert "a fault of the" in failure.message


def test_questions_go_epoch_by_epoch_and_splits_share_none(form: str) -> None:
    seen = {}
    for split in ("train", "heldout"):
        env = Verifiers(package=package(form), split=split, heldout={"fraction": 0.2})
        epochs = [
            [env.reset(seed=seed)[0] for seed in range(first, first + env.num_problems)]
            for first in (0, env.num_problems)
        ]
        assert len(set(epochs[0])) == env.num_problems
        assert sorted(epochs[0]) == sorted(epochs[1])
        assert epochs[0] != epochs[1]
        assert {split_of(prompt, 0, 0.2) for prompt in epochs[0]} == {split}
        seen[split] = set(epochs[0])
    assert len(seen["train"] | seen["heldout"]) == 100
    assert not seen["train"] & seen["heldout"]


def test_limit_and_arguments_reach_the_package(form: str) -> None:
    def count(**config: Any) -> int:
        return sum(Verifiers(package=package(form), split=split, heldout={"fraction": 0.5}, **config).num_problems for split in ("train", "heldout"))  # fmt: skip

    assert count(arguments={"numbers": 40}) == 40
    assert count(limit=30) == 30


@pytest.mark.parametrize(
    ("form", "arguments", "words"),
    [
        ("v0", {"kind": "multi"}, "Asking takes several turns"),
        ("v0", {"kind": "group"}, "its reward of_group compares the responses of a group"),
        ("v0", {"kind": "none"}, "no function with a weight"),
        ("v0", {"number": 3}, r"load_environment\(number=3\) raises TypeError"),
        ("v1", {"kind": "endless"}, "has no end; set limit"),
        ("v1", {"kind": "user first"}, "a task has no prompt"),
        ("v1", {"kind": "boxed"}, "Boxed needs a container"),
        ("v1", {"kind": "prepared"}, "Prepared has a method setup"),
        ("v1", {"kind": "unrewarded"}, "Unrewarded has no method marked @reward"),
        ("v1", {"kind": "running"}, r"Running scores with a runtime \(run\)"),
        ("v1", {"number": 3}, r"Config refuses arguments={'number': 3}"),
    ],
    indirect=["form"],
)
def test_what_one_text_cannot_answer_is_refused_at_the_start(form: str, arguments: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"package=.*{words}"):
        Verifiers(package=package(form), arguments=arguments)


@pytest.mark.parametrize("form", ["v1"], indirect=True)
def test_a_taskset_without_end_and_one_of_messages(form: str) -> None:
    assert Verifiers(package=package(form), arguments={"kind": "endless"}, limit=50).num_problems > 30
    prompt, info = Verifiers(package=package(form), arguments={"kind": "messages"}).reset(seed=0)
    assert prompt.startswith("Double ")
    assert info["messages"][0]["content"] == "Be short."


@pytest.mark.parametrize("form", ["v1"], indirect=True)
def test_a_reply_is_what_follows_the_reasoning(form: str) -> None:
    env = Verifiers(package=package(form))
    _, info = env.reset(seed=0)
    assert env.step(f"<think>Twice, so</think>{answer_of(info)}")[1] == 2.5


@pytest.mark.parametrize("form", ["v0"], indirect=True)
def test_a_question_that_is_there_twice_is_asked_once(form: str) -> None:
    counts = [Verifiers(package=package(form), arguments={"twice": twice}).num_problems for twice in (False, True)]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "package=None: give a module"),
        ({"package": "no-such/package@1.0"}, r"package='no-such/package@1.0': package cannot be imported .*install it"),
        ({"package": "json", "arguments": [1]}, "arguments="),
        ({"package": "json", "arguments": {"a": {1}}}, "give texts, numbers, lists and mappings"),
        ({"package": "json", "limit": 0}, "limit=0"),
        ({"package": "json", "heldout": {"fraction": 2}}, "heldout="),
        ({"package": "json", "correct_from": "1"}, "correct_from='1'"),
    ],
)
def test_bad_options_are_named(config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Verifiers(**config)


def test_verifiers_is_imported_only_where_a_package_needs_it() -> None:
    program = "import sys, tppo_rl.envs.verifiers_environment, tppo_rl.envs.verifiers_v0; sys.exit('verifiers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
