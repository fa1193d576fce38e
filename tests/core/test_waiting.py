"""Stages: who sees them, and where Ctrl-C ends them."""

from __future__ import annotations

import pytest

from tppo_rl.core.waiting import Stage, StageCut, stage, stop_here, watched_by


class Seen:
    def __init__(self) -> None:
        self.stop_asked = False
        self.events: list[tuple[str, str, int]] = []

    def begin(self, stage: Stage) -> None:
        self.events.append(("begin", stage.words, 0))

    def advance(self, stage: Stage, done: int) -> None:
        self.events.append(("advance", stage.words, done))

    def end(self, stage: Stage) -> None:
        self.events.append(("end", stage.words, 0))


def test_nothing_happens_where_nobody_watches() -> None:
    with stage("reading", total=3) as reading:
        reading.advance(1)
        stop_here()
    assert reading.watcher is None


def test_a_watcher_sees_a_stage_that_an_error_ends() -> None:
    seen = Seen()

    def read() -> None:
        with stage("reading", total=3) as reading:
            reading.advance(2)
            raise KeyError

    with watched_by(seen), pytest.raises(KeyError):
        read()
    with stage("later"):
        pass
    assert seen.events == [("begin", "reading", 0), ("advance", "reading", 2), ("end", "reading", 0)]


def test_a_wish_to_stop_ends_a_stage_where_it_allows() -> None:
    seen = Seen()
    with watched_by(seen):
        stop_here()
        seen.stop_asked = True
        with pytest.raises(StageCut):
            stop_here()
    assert not issubclass(StageCut, Exception), "whoever retries after errors would go on"
