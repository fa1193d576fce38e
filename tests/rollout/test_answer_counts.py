"""Counts of an evaluation under way: they reach the stage through Ray, and cost no answer where Ray does not take them."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any, cast

import pytest
import ray

from tppo_rl.core.waiting import Stage
from tppo_rl.rollout import answer_counts
from tppo_rl.rollout.answer_counts import SharedCount, shared_counts

pytestmark = pytest.mark.integration


def telling(told: list[int], expected: int, arrived: threading.Event) -> Stage:
    def advance(done: int) -> None:
        told.append(done)
        if done == expected:
            arrived.set()

    return cast(Stage, SimpleNamespace(advance=advance))


def test_the_stage_is_told_the_sum_of_what_actors_have_answered() -> None:
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    told: list[int] = []
    arrived = threading.Event()
    try:
        with shared_counts(telling(told, 7, arrived), 2) as counts:
            tell = ray.remote(lambda count, done: count(done))
            ray.get([tell.remote(count, done) for count, done in zip(counts, (3, 4), strict=True)])
            assert arrived.wait(60)
        assert max(told) == 7
        assert [answer_counts.read_value(count._key) for count in counts] == [None, None]
    finally:
        ray.shutdown()


def test_a_store_that_fails_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()

    def fail(*_: Any) -> None:
        asked.set()
        raise RuntimeError("the store is away")

    for name in ("write_value", "read_value", "delete_value"):
        monkeypatch.setattr(answer_counts, name, fail)
    monkeypatch.setattr(answer_counts, "_EVERY_S", 0.01)
    with shared_counts(telling([], 1, threading.Event()), 1) as (count,):
        count(1)
        asked.clear()
        # The reader asks again after it has failed.
        for _ in range(2):
            assert asked.wait(60)
            asked.clear()


def test_a_count_is_not_written_more_often_than_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = 100.0, []
    monkeypatch.setattr(answer_counts, "write_value", lambda key, value: written.append(value))
    monkeypatch.setattr(answer_counts.time, "monotonic", lambda: now)
    count = SharedCount("key")
    for done in (1, 2):
        count(done)
    now += 1.0
    count(3)
    assert written == ["1", "3"]
