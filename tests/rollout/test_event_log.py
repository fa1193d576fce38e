"""The file of a run's events."""

from __future__ import annotations

from pathlib import Path

import pytest

from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.rollout.event_log import FILE, RecordedEvents, ReplayedEvents, read_critic_start, read_events


def recorded(folder: Path, iterations: int, first: int = 1) -> RecordedEvents:
    log = RecordedEvents(folder, {"algorithm": "TPPO", "options": {"seed": 1}})
    for number in range(first, first + iterations):
        for what, env_runner in (("s", 1), ("r", 1), ("b", None), ("u", None), ("w", 2)):
            log.note(what, env_runner)
        log.end_iteration(number, 10 * number)
    return log


def test_events_come_back_in_their_order(tmp_path: Path) -> None:
    recorded(tmp_path, 2)
    events = ReplayedEvents(tmp_path)
    assert read_events(tmp_path)[0]["options"] == {"seed": 1}
    assert events.peek() == "s1"
    assert [events.take() for _ in range(10)] == 2 * [("s", 1), ("r", 1), ("b", 0), ("u", 0), ("w", 2)]
    with pytest.raises(RunError, match="are over"):
        events.peek()


def test_what_came_after_a_resume_is_left_out(tmp_path: Path) -> None:
    recorded(tmp_path, 4).note("s", 1)
    RecordedEvents(tmp_path, {}).resumes(2)
    recorded(tmp_path, 3, first=3)
    facts, lines = read_events(tmp_path)
    assert facts["algorithm"] == "TPPO"
    assert [(line["iteration"], line["weights"]) for line in lines] == [(1, 10), (2, 20), (3, 30), (4, 40)]


def test_a_line_that_a_kill_has_cut_is_left_out(tmp_path: Path) -> None:
    recorded(tmp_path, 3)
    file = tmp_path / FILE
    file.write_bytes(file.read_bytes()[:-20])
    assert len(read_events(tmp_path)[1]) == 2


def test_the_critic_s_start_is_kept_and_measured_where_an_older_run_has_none(tmp_path: Path) -> None:
    recorded(tmp_path / "none", 1)
    assert read_critic_start(tmp_path / "none", 0.5) is None
    log = RecordedEvents(tmp_path / "some", {"options": {}})
    log.critic_starts_at = 0.1
    log.end_iteration(1, 10)
    assert read_critic_start(tmp_path / "some", 0.5) == 0.1
    (tmp_path / FILE).write_text('{"options": {}}\n{"iteration": 1, "events": "", "weights": 1}\n', encoding="utf-8")
    assert read_critic_start(tmp_path, 0.5) == 0.5


def test_a_line_that_was_changed_is_named(tmp_path: Path) -> None:
    recorded(tmp_path, 3)
    file = tmp_path / FILE
    file.write_text(file.read_text(encoding="utf-8").replace('"weights": 20', '"weights": 21'), encoding="utf-8")
    with pytest.raises(OptionError, match="line 3 is not what the run has written: its checksum differs"):
        read_events(tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "does not begin with what the run was"),
        (b"[]\n", "does not begin with what the run was"),
        (b"{}\n", "does not begin with what the run was"),
        (b"\xff\xfe\n", "line 1 is not what a run writes"),
        (b'{"options": {}}\n3\n', "line 2 is not what a run writes"),
        (b'{"options": {}}\n{"iteration": 1}\n', "lacks parts"),
        (b'{"options": {}}\n', "a replay begins with iteration 1"),
        (b'{"options": {}}\n{"iteration": 2, "events": "", "weights": 1}\n', "a replay begins with iteration 1"),
        (b'{"options": {}}\n{"resumed_after": 2}\n', "resumed before it had recorded any"),
    ],
)
def test_another_file_is_refused_in_one_message(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(OptionError, match=words):
        read_events(tmp_path)
