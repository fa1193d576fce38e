"""The timeline of a run, from its spans to Perfetto's trace."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_recorder import record, recorder, update

from tppo_rl.cli import main
from tppo_rl.core.spans import Span
from tppo_rl.observability.timeline import TIMELINE, learner_spans
from tppo_rl.rollout.statistics import RolloutStatistics


def _trace(folder: Path, *arguments: str) -> dict[str, list[tuple[str, int, int, int]]]:
    """(name, begin, microseconds, iteration) of each track's spans, as the command writes them."""
    result = CliRunner().invoke(main, ["timeline", str(folder), *arguments])
    assert result.exit_code == 0, result.output
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    found: dict[str, list[tuple[str, int, int, int]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            found[names[event["tid"]]].append((event["name"], event["ts"], event["dur"], event["args"]["iteration"]))
    return found


def test_a_trace_of_two_iterations(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    for _ in range(2):
        with run.clock("waiting_for_fragments"):
            time.sleep(0.01)
        with run.clock("update"):
            time.sleep(0.02)
        spans = [Span("env-runner 1", "sampling", time.time() - 0.03, 0.03)]
        report = update(values_seconds=0.002, policy_seconds=0.01, critic_seconds=0.004)
        record(run, report, rollouts=RolloutStatistics(spans=spans))
    found = _trace(tmp_path)
    assert list(found) == ["driver", "learner", "env-runner 1"]
    assert [(name, iteration) for name, _, _, iteration in found["driver"]] == [
        ("waiting for fragments", 1),
        ("update", 1),
        ("waiting for fragments", 2),
        ("update", 2),
    ]
    (_, begin, length, _) = found["driver"][1]
    assert length >= 20_000
    assert [name for name, *_ in found["learner"][:3]] == ["values and advantages", "policy", "critic"]
    assert [start - begin for _, start, _, _ in found["learner"][:3]] == pytest.approx([0, 2_000, 12_000], abs=2)
    assert [duration for _, _, duration, _ in found["env-runner 1"]] == [30_000, 30_000]
    assert {iteration for _, _, _, iteration in _trace(tmp_path, "--from", "2")["driver"]} == {2}


def test_a_parallel_critic_has_a_track_of_its_own() -> None:
    spans = learner_spans(
        100.0, {"values_seconds": 1.0, "policy_seconds": 2.0, "critic_seconds": 3.0}, parallel_critic=True
    )
    assert [(span.track, span.name, span.start, span.seconds) for span in spans] == [
        ("learner", "values and advantages", 100.0, 1.0),
        ("learner", "policy", 101.0, 2.0),
        ("learner, critic", "critic", 101.0, 3.0),
    ]


def test_a_line_that_was_cut_off_is_left_out(tmp_path: Path) -> None:
    run = recorder(tmp_path)
    with run.clock("update"):
        pass
    record(run)
    with (tmp_path / TIMELINE).open("a") as file:
        file.write('{"iteration": 2, "spa')
    assert len(_trace(tmp_path)["driver"]) == 1


def test_a_run_without_one_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["timeline", str(tmp_path)])
    assert result.exit_code == 2
    assert "has no timeline of these iterations" in result.output
