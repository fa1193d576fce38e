"""One pass over what a run needs of a device, each step in a process of its own: `tppo-rl bench device`.

A step that fails, hangs or takes all memory is one line of the table, and the next one begins on a free device. The steps
themselves are in `tppo_rl.bench.device_steps`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

STEPS: dict[str, float] = {
    "machine": 60.0,
    "update": 180.0,
    "adapters": 90.0,
    "speed": 150.0,
    "long": 120.0,
    "attention": 60.0,
    "weights": 90.0,
    "sharding": 60.0,
    "engine": 180.0,
    "colocated": 180.0,
}
"""Steps in their order, and the most seconds that each may take; together they take a few minutes."""
MARK = "result of the step: "
"""Begins the line in which a step's process says what it has found."""
_LAST_LINES = 6


@dataclass(frozen=True)
class StepReport:
    """What came of one step."""

    step: str
    passed: bool
    seconds: float
    figures: dict[str, Any] = field(default_factory=dict)
    """Measured values by name; the unit is part of the name."""
    reason: str = ""
    """Why it failed, or why it had nothing to do."""


def check_device(
    device: str,
    steps: Sequence[str] = tuple(STEPS),
    *,
    small: bool,
    begins: Callable[[str], None] = lambda step: None,
) -> list[StepReport]:
    """Runs the steps one after the other.

    Args:
        device: "cpu" or "cuda".
        steps: Names of `STEPS`.
        small: Whether to take sizes that a CPU computes in seconds.
        begins: Is told the name of each step before it.

    Raises:
        ValueError: an unknown step or device.
    """
    unknown = [step for step in steps if step not in STEPS]
    if unknown:
        raise ValueError(f"step={unknown[0]!r} is unknown: use some of {', '.join(STEPS)}")
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device={device!r}: use 'cpu' or 'cuda'")
    reports = []
    for step in steps:
        begins(step)
        reports.append(_in_own_process(step, device, STEPS[step], small=small))
    return reports


def _in_own_process(step: str, device: str, limit_s: float, *, small: bool) -> StepReport:
    command = [sys.executable, "-m", "tppo_rl.bench.device_steps", step, device, *(["small"] if small else [])]
    start = time.perf_counter()
    try:
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        # What was printed so far says where it hangs; TimeoutExpired holds it as bytes.
        printed = b"".join(part for part in (error.stdout, error.stderr) if isinstance(part, bytes)).decode()
        return StepReport(step, False, limit_s, reason=f"not done after {limit_s:.0f} s; {_end_of(printed)}")
    seconds = time.perf_counter() - start
    found = [line for line in ended.stdout.splitlines() if line.startswith(MARK)]
    if ended.returncode or not found:
        return StepReport(
            step, False, seconds, reason=f"ended with {ended.returncode}; {_end_of(ended.stdout + ended.stderr)}"
        )
    result = json.loads(found[-1].removeprefix(MARK))
    return StepReport(step, not result["wrong"], seconds, result["figures"], "; ".join(result["wrong"]))


def _end_of(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return "last lines: " + " | ".join(lines[-_LAST_LINES:]) if lines else "nothing was printed"


def print_reports(reports: Sequence[StepReport]) -> None:
    """Prints one table and below it the reasons of what failed."""
    from rich.console import Console
    from rich.table import Table

    table = Table("step", "", "seconds", "found")
    for report in reports:
        found = ", ".join(f"{name} {_short(value)}" for name, value in report.figures.items())
        table.add_row(report.step, "passed" if report.passed else "FAILED", f"{report.seconds:.0f}", found)
    console = Console()
    console.print(table)
    for report in reports:
        if not report.passed:
            console.print(f"{report.step} failed: {report.reason}", markup=False, highlight=False, soft_wrap=True)


def write_reports(reports: Sequence[StepReport], file: Path) -> None:
    """Writes a list of records, one for each step, with the fields of `StepReport`."""
    file.write_text(json.dumps([asdict(report) for report in reports], indent=1), encoding="utf-8")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
