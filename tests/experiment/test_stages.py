"""Lines of what a run waits for, by a clock of the test's own."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from tppo_rl.core.waiting import stage, watched_by
from tppo_rl.experiment.stages import StageDisplay, StageLines


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def lines_of(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def make(terminal: bool = False) -> tuple[StageLines, Clock, Console]:
    clock, console = Clock(), Console(file=io.StringIO(), width=100, force_terminal=terminal)
    return StageLines(console, "run", clock), clock, console


def test_a_count_has_a_line_every_ten_seconds() -> None:
    lines, clock, console = make()
    with watched_by(lines), stage("evaluation", total=40, unit="scored") as answering:
        for second in range(1, 26):
            clock.now = float(second)
            answering.advance(second)
    assert lines_of(console) == [
        "run: evaluation ...",
        "run: evaluation: 10/40 scored, 10 s",
        "run: evaluation: 20/40 scored, 20 s",
        "run: evaluation: 25 s",
    ]


def test_a_stage_that_begins_ends_the_one_before_and_short_ones_have_no_end() -> None:
    lines, clock, console = make()
    with watched_by(lines), stage("engines"):
        clock.now = 15.0
        with stage("model"):
            clock.now = 15.5
        clock.now = 90.0
    assert lines_of(console) == ["run: engines ...", "run: engines: 15 s", "run: model ..."]
    assert lines.status() == ""


def test_stages_of_later_updates_have_no_lines_but_a_status() -> None:
    lines, clock, console = make()
    with watched_by(lines):
        with stage("training", part="update"):
            clock.now = 61.0
        lines.shows_updates = False
        with stage("sampling", total=4096, unit="tokens", part="update") as sampling:
            sampling.advance(1024)
            assert lines.status() == "sampling: 1,024/4,096 tokens, 0 s"
    assert lines_of(console) == ["run: first update, training ...", "run: first update, training: 1:01"]


def test_what_was_cut_short_has_no_end_and_late_counts_are_ignored() -> None:
    lines, clock, console = make()
    with watched_by(lines):
        with stage("engines") as engines:
            clock.now = 20.0
            lines.shows_ends = False
        engines.advance(5)
    assert lines_of(console) == ["run: engines ..."]


def test_before_a_run_a_stage_has_a_line_when_it_takes_long() -> None:
    console = Console(file=io.StringIO(), width=100)
    with StageDisplay(console, "run") as display, watched_by(display), stage("reading the data"):
        while not lines_of(console):
            time.sleep(0.01)
    assert lines_of(console)[0] == "run: reading the data ..."


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_has_a_line_that_rewrites_itself(terminal: bool) -> None:
    console = Console(file=io.StringIO(), width=100, force_terminal=terminal)
    with StageDisplay(console, "run") as display, watched_by(display), stage("reading the data"):
        pass
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "reading the data ..." not in text
    assert ("reading the data, 0 s" in text) is terminal


def test_a_terminal_keeps_the_lines_of_the_start_alone() -> None:
    lines, clock, console = make(terminal=True)
    with watched_by(lines):
        for seconds in (20.0, 60.0):
            with stage("evaluation", total=8, part="evaluation"):
                clock.now += seconds
            lines.shows_updates = False
    assert lines_of(console) == ["run: evaluation: 20 s"]
