"""The timeline of a run: spans of driver, learner, engines and scoring, as Perfetto shows them.

A run appends one line an iteration to `timeline.jsonl`; `tppo-rl timeline RUN` makes one trace of them, in the Trace Event Format
that https://ui.perfetto.dev and chrome://tracing open. Learners report how long values, policy and critic took; their spans stand one
after another from the begin of the update on, or side by side with `parallel_critic`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tppo_rl.core.errors import OptionError
from tppo_rl.core.spans import Span

TIMELINE = "timeline.jsonl"
DRIVER, LEARNER, CRITIC = "driver", "learner", "learner, critic"


def append_spans(folder: Path, iteration: int, spans: Sequence[Span]) -> None:
    """Adds the spans of an iteration to the run's file."""
    line = {"iteration": iteration, "spans": [[s.track, s.name, round(s.start, 6), round(s.seconds, 6)] for s in spans]}
    with (folder / TIMELINE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def learner_spans(start: float, metrics: Mapping[str, float], *, parallel_critic: bool) -> list[Span]:
    """Returns the spans of an update that began at `start`, by the seconds of its parts."""
    values, policy, critic = (metrics.get(f"{part}_seconds", 0.0) for part in ("values", "policy", "critic"))
    after_values = start + values
    spans = [Span(LEARNER, "values and advantages", start, values), Span(LEARNER, "policy", after_values, policy)]
    if parallel_critic:
        spans.append(Span(CRITIC, "critic", after_values, critic))
    else:
        spans.append(Span(LEARNER, "critic", after_values + policy, critic))
    return [span for span in spans if span.seconds > 0]


def trace(folder: Path, first: int = 1, last: int | None = None) -> dict[str, Any]:
    """Returns the trace of a run's iterations, in the Trace Event Format; times are in microseconds.

    Raises:
        OptionError: the run has no timeline, or none of these iterations.
    """
    found = [(number, span) for number, span in _spans(folder) if number >= first and (last is None or number <= last)]
    if not found:
        raise OptionError(
            f"run={str(folder)!r}: has no timeline of these iterations; give a run's folder with {TIMELINE}"
        )
    begin = min(span.start for _, span in found)
    tracks = sorted({span.track for _, span in found}, key=lambda track: (track != DRIVER, LEARNER not in track, track))
    events: list[dict[str, Any]] = [{"ph": "M", "pid": 1, "name": "process_name", "args": {"name": folder.name}}]
    for number, track in enumerate(tracks):
        events.append({"ph": "M", "pid": 1, "tid": number, "name": "thread_name", "args": {"name": track}})
        events.append({"ph": "M", "pid": 1, "tid": number, "name": "thread_sort_index", "args": {"sort_index": number}})
    numbers = {track: number for number, track in enumerate(tracks)}
    events += [
        {
            "ph": "X",
            "pid": 1,
            "tid": numbers[span.track],
            "name": span.name,
            "ts": round((span.start - begin) * 1e6),
            "dur": round(span.seconds * 1e6),
            "args": {"iteration": iteration},
        }
        for iteration, span in found
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _spans(folder: Path) -> Iterator[tuple[int, Span]]:
    file = folder / TIMELINE
    if not file.is_file():
        return
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            # The run was killed while it wrote its last line.
            continue
        for span in row["spans"]:
            yield row["iteration"], Span(*span)
