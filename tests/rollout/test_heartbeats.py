"""Signs of life: whoever works is left alone, whoever hangs is found after the time that was set, and the others go on."""

from __future__ import annotations

import os
import signal
import sys
import time
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from hypothesis import given
from hypothesis import strategies as st
from ray.rllib.utils.actor_manager import FaultTolerantActorManager

from tppo_rl.rollout import heartbeats
from tppo_rl.rollout.asking import ask_each
from tppo_rl.rollout.heartbeats import Heartbeat, Heartbeats, answered_since, sign_of
from tppo_rl.rollout.rllib_internals import heartbeat_key, own_heartbeat_key, read_value

PATIENCE_S = 40.0


class Clock:
    """`time` of the module."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        patch.setattr(heartbeats, "time", SimpleNamespace(monotonic=lambda: self.now))


@given(
    works=st.lists(st.booleans(), min_size=200, max_size=400),
    stops_at=st.integers(10, 100),
    answers=st.sets(st.integers(0, 400)),
)
def test_one_that_hangs_is_found_in_time_and_no_other(works: list[bool], stops_at: int, answers: set[int]) -> None:
    """Env-runner 1 works on, 2 stops for good, 3 has nothing to do. 1 shows a sign at least every five seconds."""
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        signs: dict[int, str | None] = {1: None, 2: None, 3: None}
        watch = Heartbeats(None, PATIENCE_S, read=signs.__getitem__)
        found: list[tuple[int, int]] = []
        for second, worked in enumerate(works):
            clock.now += 1.0
            if worked or second % 5 == 0:
                signs[1] = f"p {second} 0 0"
            if second < stops_at:
                signs[2] = f"p {second} 0 0"
            if second in answers:
                watch.heard(1)
                if second < stops_at:
                    watch.heard(2)
            found += [(second, env_runner) for env_runner in watch.hung([1, 2])]
    assert {env_runner for _, env_runner in found} == {2}
    # Its last sign is seen with the next look, up to a quarter later.
    assert stops_at + PATIENCE_S - 1 <= found[0][0] <= stops_at + 1.3 * PATIENCE_S


def test_a_driver_that_was_stopped_itself_suspects_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    watch = Heartbeats(None, PATIENCE_S, read=lambda _: "p 1 0 0")
    for _ in range(3):
        clock.now += 10 * PATIENCE_S
        assert watch.hung([1]) == []


def test_a_sign_is_written_once_a_second_and_says_what_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(monkeypatch), list[str]()
    monkeypatch.setattr(heartbeats, "write_value", lambda key, value: written.append(value))
    heartbeat = Heartbeat("key")
    for number in (1, 2):
        heartbeat.answered(number)
    clock.now += 1.0
    heartbeat.beat()
    assert [answered_since("p 1 9 7", sign) for sign in written] == [1, 2]
    assert len(set(written)) == 2
    Heartbeat(None).beat()
    assert len(written) == 2


def test_answers_of_an_earlier_evaluation_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, written = Clock(monkeypatch), [None]
    monkeypatch.setattr(heartbeats, "write_value", lambda key, value: written.append(value))
    heartbeat = Heartbeat("key")
    seen = []
    for evaluation in (1, 2):
        before = written[-1]
        clock.now += 1.0
        # Requests that were sent before it.
        heartbeat.beat()
        seen.append(answered_since(before, written[-1]))
        heartbeat.begin_evaluation()
        clock.now += 1.0
        heartbeat.answered(20 + evaluation)
        seen.append(answered_since(before, written[-1]))
    assert seen == [0, 21, 0, 22]


def test_a_store_that_fails_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the store is away")

    for name in ("write_value", "read_value", "delete_value"):
        monkeypatch.setattr(heartbeats, name, fail)
    monkeypatch.setattr(heartbeats, "heartbeat_key", lambda *_: "key")
    heartbeat = Heartbeat("key")
    heartbeat.beat()
    heartbeat.stop()
    assert sign_of(None, 1) is None


def test_one_that_cannot_even_be_killed_is_not_waited_for() -> None:
    replaced: list[int] = []
    group: Any = SimpleNamespace(
        healthy_env_runner_ids=lambda: [number for number in (1, 2) if number not in replaced],
        call_env_runner=lambda env_runner, _: env_runner,
        take_answers=lambda calls: [(1, calls.pop(1))] if 1 in calls else [],
        replace=replaced.append,
    )
    assert ask_each(group, dict.fromkeys((1, 2), own_pid), silence_s=0.05) == {1: 1}
    assert replaced == [2]


@ray.remote(max_restarts=-1)
class Member:
    """An actor that RLlib's manager can ask."""

    def __init__(self) -> None:
        self.heartbeat = Heartbeat(own_heartbeat_key())

    def apply(self, func: Any) -> Any:
        return func(self)

    def ping(self) -> str:
        return "pong"


def own_pid(_: Any) -> int:
    return os.getpid()


def work(member: Any, *, seconds: float, hangs: bool) -> int:
    for done in range(int(10 * seconds)):
        time.sleep(0.1)
        member.heartbeat.answered(done)
        if hangs and done == 5:
            os.kill(os.getpid(), signal.SIGSTOP)
    return os.getpid()


@pytest.mark.integration
@pytest.mark.timeout(300)
def test_of_those_that_are_asked_one_that_hangs_is_started_anew_and_one_that_takes_long_answers() -> None:
    # Actors have no path to the tests.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        manager = FaultTolerantActorManager([Member.remote() for _ in range(3)], init_id=1)
        group: Any = SimpleNamespace(_worker_manager=manager, healthy_env_runner_ids=manager.healthy_actor_ids)
        before = ask_each(group, dict.fromkeys((1, 2, 3), own_pid), silence_s=60)
        told: list[int] = []
        answers = ask_each(
            group,
            {
                3: partial(work, seconds=0.1, hangs=False),
                1: partial(work, seconds=12, hangs=False),
                2: partial(work, seconds=12, hangs=True),
            },
            silence_s=4.0,
            meanwhile=lambda: told.append(answered_since("p 1 9 0", sign_of(group, 1))),
        )
        assert answers == {3: before[3], 1: before[1]}
        assert list(answers) == [3, 1]
        assert told == sorted(told)
        assert told[-1] > 60
        assert manager.healthy_actor_ids() == [1, 3]
        while not manager.probe_unhealthy_actors(timeout_seconds=60, mark_healthy=True):
            time.sleep(0.5)
        assert ask_each(group, {2: own_pid}, silence_s=60)[2] != before[2]
        key = heartbeat_key(group, 1)
        assert key is not None
        assert read_value(key)
        ask_each(group, {1: lambda member: member.heartbeat.stop()}, silence_s=60)
        assert read_value(key) is None
    finally:
        ray.shutdown()
