"""OpenEnv's environments: a client over the websocket, servers on the loopback."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from click.testing import CliRunner
from openenv_servers import ACTION, OBSERVATION, TEXT, real_server, stand_in

from tppo_rl.cli import main
from tppo_rl.envs.openenv_environment import OpenEnv
from tppo_rl.envs.text_env import split_of
from tppo_rl.rollout.dialogs import take_step
from tppo_rl.rollout.responses import Failure

MakeServer = Callable[..., AbstractContextManager[str]]
MakeEnv = Callable[..., OpenEnv]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture(
    scope="module",
    params=[stand_in, pytest.param(real_server, marks=pytest.mark.integration)],
    ids=["stand-in", "openenv"],
)
def make_server(request: pytest.FixtureRequest) -> MakeServer:
    made: MakeServer = request.param
    return made


@pytest.fixture(scope="module")
def server(make_server: MakeServer) -> Iterator[str]:
    with make_server() as url:
        yield url


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Makes environments, whose sessions end with the test."""
    made: list[OpenEnv] = []

    def make(**config: Any) -> OpenEnv:
        made.append(OpenEnv(**config))
        return made[-1]

    yield make
    for env in made:
        env.close()


def right(env: OpenEnv) -> str:
    """The number of the episode, found by asking."""
    problem = env.current_problem
    for guess in map(str, range(10)):
        env.reset(seed=0)
        assert env.current_problem == problem
        if env.step(guess)[2]:
            return guess
    raise AssertionError


@pytest.mark.parametrize("keep_session", [False, True])
def test_an_episode_over_the_wire(server: str, keep_session: bool, make_env: MakeEnv) -> None:
    env = make_env(url=server, correct_from=1.0, keep_session=keep_session)
    prompt, _ = env.reset(seed=0)
    assert prompt.endswith(": a number from 0 to 9?")
    number = right(env)
    assert env.reset(seed=0)[0] == prompt
    assert env.step("/") == ("higher", 0.25, False, False, {})
    assert env.step("x") == ("lower", 0.25, False, False, {})
    text, reward, terminated, truncated, info = env.step(number)
    assert (text, reward, terminated, truncated, info["correct"]) == ("", 1.0, True, False, True)
    env.close()


def test_an_end_is_terminated_unless_a_field_says_otherwise(server: str, make_env: MakeEnv) -> None:
    for field, ends in ((None, (True, False)), ("out_of_turns", (False, True))):
        env = make_env(url=server, truncated_field=field)
        for count in (1, 2):
            env.reset(seed=0)
            for _ in range(2):
                env.step("/")
            _, reward, *ended, info = env.step("/")
            assert (reward, tuple(ended)) == (-1.0, ends)
            assert info == ({"unspecified_ends": count} if field is None else {})


def test_splits_share_no_prompt_or_no_seed(server: str, make_env: MakeEnv) -> None:
    for split in ("train", "heldout"):
        env = make_env(url=server, split=split)
        prompts = [env.reset(seed=seed)[0] for seed in range(5)]
        assert {split_of(prompt, 0) for prompt in prompts} == {split}
        env = make_env(url=server, split=split, split_by="seed")
        numbers = [env.reset(seed=seed)[0].split()[1].strip(":") for seed in range(5)]
        assert {split_of(number, 0) for number in numbers} == {split}
        assert len(set(numbers)) == 5


def test_many_environments_take_turns_at_one_session(server: str, make_env: MakeEnv) -> None:
    envs = [make_env(url=server, connect_timeout_s=30) for _ in range(4)]
    prompts = [env.reset(seed=seed)[0] for seed, env in enumerate(envs)]
    answers: dict[int, list[Any]] = {}

    def play(index: int) -> None:
        answers[index] = [take_step(envs[index], "/") for _ in range(3)]

    threads = [threading.Thread(target=play, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(prompts)) == 4
    assert [answers[index][-1].reward for index in range(4)] == [-1.0] * 4


def test_a_server_that_stays_full_is_a_named_failure_and_another_one_helps(
    make_server: MakeServer, make_env: MakeEnv
) -> None:
    with make_server() as first, make_server() as second:
        holder = make_env(url=first, keep_session=True)
        holder.reset(seed=0)
        with pytest.raises(TimeoutError, match=r"no session within 0.2 s at .*all their sessions are taken.*`urls`"):
            make_env(url=first, connect_timeout_s=0.2).reset(seed=0)
        for _ in range(3):
            assert make_env(urls=[first, second]).reset(seed=0)[0]
        holder.close()
        assert make_env(url=first).reset(seed=0)[0]


@pytest.mark.parametrize("keep_session", [False, True])
def test_faults_of_a_server_are_failures_and_never_a_reward(server: str, keep_session: bool, make_env: MakeEnv) -> None:
    env = make_env(url=server, step_timeout_s=0.5, keep_session=keep_session)
    for said, kind, words in (
        ("raise", "exception", "EXECUTION_ERROR: the game is broken"),
        ("hang", "timeout", "has not answered a step within step_timeout_s=0.5"),
    ):
        env.reset(seed=0)
        failure = take_step(env, said)
        assert isinstance(failure, Failure)
        assert failure.kind == kind
        assert words in failure.message
        # The server may still be busy with what it was asked.
        env = make_env(url=server, connect_timeout_s=60, step_timeout_s=60) if said == "hang" else env
    assert env.reset(seed=0)[0]


@pytest.mark.parametrize("keep_session", [False, True])
def test_a_lost_connection_is_a_failure(keep_session: bool, make_env: MakeEnv) -> None:
    with stand_in() as url:
        env = make_env(url=url, keep_session=keep_session)
        env.reset(seed=0)
        failure = take_step(env, "leave", attempts=2)
        assert isinstance(failure, Failure)
        assert "closed the connection at a step" in failure.message or "session is lost" in failure.message
        env.reset(seed=0)
    failure = take_step(env, "1")
    assert isinstance(failure, Failure)


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (lambda message, answer: ["x"], "a message without data"),
        (lambda message, answer: {"type": "state", "data": {}}, "no observation"),
        (lambda message, answer: _with(answer, reward="much"), "a reward that is no number"),
        (lambda message, answer: _with(answer, done="no"), "no observation"),
        (lambda message, answer: _with(answer, observation={"a": 1}), "observation_field='text': the observation has a"),
        (lambda message, answer: _with(answer, reward=float("nan")) if message["type"] == "step" else answer, "must be finite"),
    ],
)  # fmt: skip
def test_answers_against_the_protocol_are_failures(reply: Any, words: str, make_env: MakeEnv) -> None:
    with stand_in(reply=reply) as url:
        env = make_env(url=url, action_field="message", observation_field="text")
        failure = take_step(Begun(env), "1")
        assert isinstance(failure, Failure)
        assert words in failure.message


class Begun:
    """Begins an episode with every step, so that what a reset raises is a failure of the step."""

    def __init__(self, env: OpenEnv) -> None:
        self._env = env

    def step(self, said: str) -> Any:
        self._env.reset(seed=0)
        return self._env.step(said)


def test_a_server_that_is_not_the_same_twice_is_not_scored(make_env: MakeEnv) -> None:
    count = iter(range(100))

    def reply(message: Any, answer: Any) -> Any:
        return _with(answer, observation={"text": f"attempt {next(count)}"})

    with stand_in(reply=reply) as url:
        env = make_env(url=url)
        env.reset(seed=0)
        failure = take_step(env, "1")
        assert isinstance(failure, Failure)
        assert "gave another episode the second time; set keep_session" in failure.message


def test_the_schema_decides_the_field_or_says_why_it_cannot(make_env: MakeEnv) -> None:
    two = {"properties": {"code": TEXT, "note": TEXT}}
    more = {"properties": {"code": TEXT, "row": {"type": "integer"}}, "required": ["code", "row"]}
    for action, observation, words in (
        (
            two,
            None,
            r"action_field=None: .* has 2 text fields in its action \((code, note|note, code)\); name the field",
        ),
        ({"properties": {"row": {"type": "integer"}}}, None, r"action_field=None: .* has 0 text fields"),
        (more, None, r"action_field=None: .* needs more than a text in its action \(row\)"),
        (None, two, r"observation_field=None: .* has 2 text fields in its observation"),
    ):
        with stand_in(action=action, observation=observation) as url, pytest.raises(ValueError, match=words):
            OpenEnv(url=url)
    optional = {"properties": {"text": {"anyOf": [TEXT, {"type": "null"}]}}}
    with stand_in(action=ACTION, observation=optional) as url:
        assert make_env(url=url).observation_field == "text"
    with stand_in(action=two, observation=OBSERVATION) as url:
        assert make_env(url=url, action_field="code", observation_field="turns").reset(seed=0)[0] == "0"


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "url=None: give either url or urls"),
        ({"url": "http://a", "urls": ["http://b"]}, "give either url or urls"),
        ({"url": "localhost:8000"}, "url='localhost:8000': give the place of a server as http://"),
        ({"urls": []}, "give the place of a server"),
        (
            {"url": "http://127.0.0.1:9"},
            r"url='http://127.0.0.1:9': its /schema cannot be read .*start the server first",
        ),
        ({"url": "http://a", "step_timeout_s": 0}, "step_timeout_s=0: give a number of seconds"),
        ({"url": "http://a", "split_by": "hash"}, "split_by='hash'"),
        ({"url": "http://a", "keep_session": 1}, "keep_session=1"),
        ({"url": "http://a", "truncated_field": ""}, "truncated_field=''"),
    ],
)
def test_bad_options_are_named(config: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        OpenEnv(**config)


@pytest.mark.integration
def test_check_env_passes_on_one_session_of_a_server(server: str) -> None:
    arguments = [
        "check-env",
        "tppo_rl/OpenEnv-v0",
        "--set",
        f"url={server}",
        "--set",
        "correct_from=1",
        "--episodes",
        "3",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output


def _with(answer: Any, **values: Any) -> Any:
    return {**answer, "data": {**answer["data"], **values}}
