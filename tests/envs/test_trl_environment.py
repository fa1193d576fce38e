"""TRL's environments: an object's methods are tools, its state gives the reward."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import trl_examples
from data_sets import write_lines

from tppo_rl.config.checks import check_environment
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.envs.tool_calls import ToolCall, finished, tool_calls
from tppo_rl.envs.trl_environment import TRLEnvironment
from tppo_rl.rollout.dialogs import take_step
from tppo_rl.rollout.responses import Failure

ROWS = [{"prompt": f"Open safe {k}.", "code": 40 + k, "solution": str(40 + k)} for k in range(60)]


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


@pytest.fixture
def rows(tmp_path: Path) -> str:
    return write_lines(tmp_path / "rows.jsonl", ROWS)


@pytest.fixture
def place(tmp_path: Path) -> str:
    """The user's file, outside of the repository."""
    return shutil.copy(Path(trl_examples.__file__), tmp_path / "my_environments.py")


def test_an_episode_goes_through_tools_to_the_reward(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:Safe", correct_from=2.0)
    prompt, info = env.reset(seed=3)
    code = info["code"]
    assert prompt == f"Open safe {code - 40}. The safe has 2 digits."
    assert [schema["function"]["name"] for schema in info["tool_schemas"]] == ["listen", "try_code"]
    assert info["tool_schemas"][1]["function"]["parameters"] == {
        "type": "object",
        "properties": {"code": {"type": "integer", "description": "The code to try."}},
        "required": ["code"],
    }
    step = env.step(f"Two at once.\n{call('listen')}\n{call('try_code', code=1)}")
    said = f"<tool_response>\n{{'last': {code % 10}}}\n</tool_response>\n<tool_response>\nclosed\n</tool_response>"
    assert step == (said, 0.0, False, False, {})
    assert env.step(call("try_code", code=code))[0] == "<tool_response>\nopen\n</tool_response>"
    assert env.step("It is open.") == ("", 2.0, True, False, {"correct": True})
    env.reset(seed=3)
    assert env.step("I give up.") == ("", -0.5, True, False, {"correct": False})


def test_what_a_tool_raises_is_its_answer_in_trls_words(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:Safe")
    env.reset(seed=0)
    answers = {
        call("try_code", code="x"): "{'error': 'a code is a number'}",
        call("drill"): "{'error': 'Tool drill not found.'}",
        call("get_reward"): "{'error': 'Tool get_reward not found.'}",
        call("__init__"): "{'error': 'Tool __init__ not found.'}",
    }
    for said, answer in answers.items():
        text, reward, terminated, truncated, info = env.step(said)
        assert (text, reward, terminated, truncated, info) == (
            f"<tool_response>\n{answer}\n</tool_response>", 0.0, False, False, {},
        )  # fmt: skip
    assert "unexpected keyword argument" in env.step(call("listen", loud=True))[0]
    assert "the call is no JSON" in env.step("<tool_call>{'name': 'listen'}</tool_call>")[0]


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('{"name": "f", "arguments": {"a": 1}}', [ToolCall("f", {"a": 1})]),
        ('```json\n{"name": "f", "parameters": {}}\n```', [ToolCall("f", {})]),
        ('[{"name": "f", "arguments": "{\\"a\\": 1}"}, {"name": "g", "arguments": {}}]', [ToolCall("f", {"a": 1}), ToolCall("g")]),
        ('<think>maybe <tool_call>{"name": "f"}</tool_call></think>\nNo.', []),
        ('<think>so</think>{"name": "f", "arguments": {}}', [ToolCall("f")]),
        ('<tool_call>{"name": "f", "arguments": {}}', [ToolCall("f")]),
        ('{"name": "Ada", "age": 36}', []),
        ('The answer is {"name": "f", "arguments": {}}', []),
        ("[1, 2]", []),
        ("[]", []),
        ("{" * 100_000, []),
        ('{"a":' * 100_000, []),
        ("[" * 100_000, []),
        ("9" * 100_000, []),
        ("", []),
    ],
)  # fmt: skip
def test_calls_are_read_and_answers_that_look_alike_are_not(text: str, calls: list[ToolCall]) -> None:
    assert tool_calls(text) == calls


def test_deep_brackets_in_a_call_are_answered_and_not_raised() -> None:
    (one,) = tool_calls("<tool_call>" + "[" * 100_000 + "</tool_call>")
    assert one.error


def test_the_object_is_made_once_and_gets_the_row_as_it_is(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:Safe", prompt="Row {prompt}", answer="solution")
    owner = env._objects[None]
    for seed in (1, 2):
        _, info = env.reset(seed=seed)
        # Neither the gold answer nor anything else that is not in the row.
        assert owner.columns == {name: info[name] for name in ("prompt", "code", "solution")}
        owner.columns["prompt"] = owner.columns["solution"] = None
    assert type(owner).made == 1
    assert env.reset(seed=1)[1]["prompt"] is not None


def test_max_turns_ends_a_call_too_many_as_truncated(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:Safe", max_turns=1, correct_from=2)
    _, info = env.reset(seed=0)
    assert not env.step(call("listen"))[2]
    assert env.step(call("try_code", code=info["code"])) == ("", -0.5, False, True, {"correct": False})


def test_without_get_reward_a_call_too_many_is_truncated_and_wrong(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:Notes", max_turns=1, answer="solution", verifier="numeric")
    _, info = env.reset(seed=0)
    assert not env.step(call("write", text="so"))[2]
    # The verifier would find the last number of the text.
    spent = call("write", text=info["solution"])
    assert env.step(spent) == ("", 0.0, False, True, {"correct": False, "score": 0.0})
    env = TRLEnvironment(source=rows, factory=f"{place}:Notes", max_turns=1)
    env.reset(seed=0)
    env.step(call("write", text="so"))
    assert env.step(spent) == ("", 0.0, False, True, {})


def test_without_get_reward_the_answer_decides_or_else_the_runs_rewards(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:Notes", answer="solution")
    _, info = env.reset(seed=0)
    assert env.step(call("write", text=info["solution"]))[0] == "<tool_response>\n1 notes\n</tool_response>"
    assert env.step(info["worked_solution"])[1:] == (1.0, True, False, {"correct": True, "score": 1.0})

    values = {"env": "tppo_rl/TRLEnvironment-v0", "env_config": {"source": rows, "factory": f"{place}:Notes"}}
    with pytest.raises(
        OptionError, match=r"rewards='environment': .*:Notes has no get_reward, and the data have no answers"
    ):
        check_environment(Options.of(values))
    check_environment(Options.of(values | {"rewards": {"type": "length", "beyond": 3}}))
    values["env_config"]["factory"] = f"{place}:Safe"
    check_environment(Options.of(values))
    with pytest.raises(OptionError, match=r"rewards='zero_one': .*set env_config.correct_from"):
        check_environment(Options.of(values | {"rewards": "zero_one"}))


def test_names_lead_rows_to_environments_of_their_own(tmp_path: Path, place: str) -> None:
    rows = [{"prompt": f"{name} {k}", "environment": name, "code": k} for k in range(40) for name in ("safe", "notes")]
    source = write_lines(tmp_path / "rooms.jsonl", rows)
    env = TRLEnvironment(source=source, factory=f"{place}:ROOMS")
    tools = {}
    for seed in range(20):
        _, info = env.reset(seed=seed)
        tools[info["environment"]] = [schema["function"]["name"] for schema in info["tool_schemas"]]
        assert "environment" not in env._objects["safe"].__dict__.get("columns", {})
    assert tools == {"safe": ["listen", "try_code"], "notes": ["write"]}
    source = write_lines(tmp_path / "other.jsonl", [{"prompt": f"{k}", "environment": "attic"} for k in range(40)])
    with pytest.raises(ValueError, match=r"a row has environment='attic', and there are safe, notes"):
        TRLEnvironment(source=source, factory=f"{place}:ROOMS")


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        ("Untyped", {}, r"its tool look has no schema \(.*\); give it type hints and a Google-style docstring"),
        ("NoReset", {}, "no method `reset`"),
        ("NeedsMore", {}, "raises TypeError: .*called without arguments"),
        ("Missing", {}, "has no 'Missing'"),
        ("ROOMS.safe", {}, "has no 'ROOMS.safe'"),
        ("Safe", {"max_turns": 0}, "max_turns=0: give an integer of 1 or more"),
        ("Safe", {"correct_from": "1"}, "correct_from='1': give a finite number"),
        ("Notes", {"correct_from": 1}, "it is a reward of get_reward, which .*:Notes does not have"),
    ],
)
def test_bad_factories_are_named_at_the_start(rows: str, place: str, name: str, config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TRLEnvironment(source=rows, factory=f"{place}:{name}", **config)


def test_a_factory_must_be_a_place(rows: str) -> None:
    for factory in (None, "Safe", 3):
        with pytest.raises(ValueError, match=r"factory=.*: give the place of a callable"):
            TRLEnvironment(source=rows, factory=factory)  # type: ignore[arg-type]


def test_a_reward_that_is_no_number_is_a_failure_and_not_0(rows: str, place: str) -> None:
    env = TRLEnvironment(source=rows, factory=f"{place}:BadReward")
    env.reset(seed=0)
    failure = take_step(env, "done")
    assert isinstance(failure, Failure)
    assert "get_reward must return a finite number, not nan" in failure.message


def test_coroutines_of_a_thread_share_a_loop() -> None:
    """What a method makes for its loop, such as a client, is used by the next one."""

    async def loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    first = finished(loop())
    assert finished(loop()) is first
    assert not first.is_closed()
