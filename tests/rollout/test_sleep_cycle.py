"""The order of sleeping and waking around an update, whatever fails."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.core.errors import ProcessDied
from tppo_rl.rollout.resting_engines import RestingEngines
from tppo_rl.rollout.sleep_cycle import SleepCycle


class Memory:
    """What an engine holds, and what it was told; a step may be made to fail once."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.held = {"weights", "kv_cache"}
        self.fails: str | None = None
        self.cycle = SleepCycle(self._sleep, self._wake)

    def _sleep(self) -> None:
        self._do("sleep")
        assert self.held == {"weights", "kv_cache"}
        self.held.clear()

    def _wake(self, part: str) -> None:
        self._do(f"wake {part}")
        self.held.add(part)

    def _do(self, call: str) -> None:
        self.calls.append(call)
        if self.fails == call:
            self.fails = None
            raise MemoryError(call)

    def load(self) -> None:
        with self.cycle.taking_weights():
            assert "weights" in self.held
            self._do("load")


def test_weights_are_loaded_before_keys_and_values_are_there() -> None:
    memory = Memory()
    memory.cycle.fall_asleep()
    assert (memory.cycle.state, memory.held) == ("asleep", set())
    memory.load()
    assert memory.calls == ["sleep", "wake weights", "load", "wake kv_cache"]
    assert memory.cycle.state == "awake"


def test_an_engine_that_is_awake_is_left_alone() -> None:
    memory = Memory()
    memory.cycle.wake_up()
    memory.load()
    assert memory.calls == ["load"]


def test_it_sleeps_once() -> None:
    memory = Memory()
    memory.cycle.fall_asleep()
    memory.cycle.fall_asleep()
    assert memory.calls == ["sleep"]


def test_weights_that_cannot_be_loaded_leave_it_awake() -> None:
    memory = Memory()
    memory.cycle.fall_asleep()
    memory.fails = "load"
    with pytest.raises(MemoryError):
        memory.load()
    assert (memory.cycle.state, memory.held) == ("awake", {"weights", "kv_cache"})


@pytest.mark.parametrize(("fails", "state"), [("wake weights", "asleep"), ("wake kv_cache", "waking")])
def test_what_could_not_be_taken_back_is_tried_again(fails: str, state: str) -> None:
    memory = Memory()
    memory.cycle.fall_asleep()
    memory.fails = fails
    with pytest.raises(MemoryError):
        memory.load()
    assert memory.cycle.state == state
    memory.cycle.wake_up()
    assert memory.held == {"weights", "kv_cache"}
    assert memory.calls.count("wake weights") == (2 if state == "asleep" else 1)


def test_an_engine_that_could_not_fall_asleep_is_woken() -> None:
    memory = Memory()
    memory.fails = "sleep"
    with pytest.raises(MemoryError):
        memory.cycle.fall_asleep()
    assert memory.cycle.state == "asleep"
    memory.cycle.wake_up()
    assert memory.calls == ["sleep", "wake weights", "wake kv_cache"]


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["fall_asleep", "wake_up", "load"]),
            st.sampled_from([None, "load", "wake weights", "wake kv_cache"]),
        ),
        max_size=12,
    )
)
def test_any_order_of_calls_and_failures_ends_awake(calls: list[tuple[str, str | None]]) -> None:
    memory = Memory()
    for call, memory.fails in calls:
        with suppress(MemoryError):
            memory.load() if call == "load" else getattr(memory.cycle, call)()
        state = {"awake": {"weights", "kv_cache"}, "waking": {"weights"}, "asleep": set()}[memory.cycle.state]
        assert memory.held == state
    memory.fails = None
    memory.cycle.wake_up()
    assert memory.held == {"weights", "kv_cache"}


class Group:
    """RLlib's group of two env-runners, as far as it is told to sleep and wake; one may answer with an error, or not at all."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.answers: dict[str, list[Any]] = {"sleep": [None, None], "wake_up": [None, None]}

    def healthy_env_runner_ids(self) -> list[int]:
        return [1, 2]

    def num_remote_env_runners(self) -> int:
        return 2

    def foreach_env_runner(self, method: str, **_: Any) -> list[Any]:
        self.told.append(method)
        return self.answers[method]


def resting(group: Group, *, sleeps: bool = True) -> RestingEngines:
    return RestingEngines(group, lambda: group.told.append("release"), sleeps=sleeps, timeout_s=3.0)


def test_learners_release_memory_before_engines_get_new_weights() -> None:
    group = Group()
    with resting(group).asleep():
        group.told.append("update")
    assert group.told == ["sleep", "update", "release"]


def test_engines_that_do_not_sleep_are_not_asked() -> None:
    group = Group()
    with resting(group, sleeps=False).asleep():
        pass
    assert group.told == []


@pytest.mark.parametrize("error", [RuntimeError("update"), KeyboardInterrupt()])
def test_an_update_that_fails_wakes_the_engines(error: BaseException) -> None:
    group = Group()
    with pytest.raises(type(error)), resting(group).asleep():
        raise error
    assert group.told == ["sleep", "release", "wake_up"]


def test_an_engine_that_cannot_sleep_ends_the_update_before_it_begins() -> None:
    group = Group()
    group.answers["sleep"] = [None, RuntimeError("no sleep")]
    with pytest.raises(RuntimeError, match="no sleep"), resting(group).asleep():
        group.told.append("update")
    assert group.told == ["sleep", "release", "wake_up"]


def test_an_env_runner_that_is_silent_holds_memory() -> None:
    group = Group()
    group.answers["sleep"] = [None]
    with (
        pytest.raises(ProcessDied, match="1 of 2 env-runners did not answer to sleep for 3 s"),
        resting(group).asleep(),
    ):
        group.told.append("update")
    assert "update" not in group.told


def test_the_first_error_is_told_where_waking_fails_too() -> None:
    group = Group()
    group.answers["wake_up"] = [RuntimeError("no waking"), None]
    with pytest.raises(RuntimeError, match="the update"), resting(group).asleep():
        raise RuntimeError("the update")
