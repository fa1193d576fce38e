"""How long a group waits for its learners: time in which this process itself was stopped does not count."""

from __future__ import annotations

import threading
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest

from tppo_rl.learner import learner_group
from tppo_rl.learner.learner_group import TPPOLearnerGroup

TIMEOUT_S = 60.0


def hung_after(waits: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether learners count as hung after so many waits, between which so much time has passed."""
    clock = count(0.0, seconds)
    monkeypatch.setattr(learner_group, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    left = count(1)
    answered: Any = SimpleNamespace(wait=lambda _: next(left) > waits, is_set=lambda: False)
    group: Any = SimpleNamespace(_hung=threading.Event(), _kill_hung=lambda _: None)
    TPPOLearnerGroup._kill_late(group, answered, TIMEOUT_S)
    return bool(group._hung.is_set())


def test_learners_that_do_not_answer_in_time_are_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert hung_after(40, 5.0, monkeypatch)
    assert not hung_after(5, 5.0, monkeypatch)


def test_time_in_which_the_driver_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not hung_after(2, 3600.0, monkeypatch)
