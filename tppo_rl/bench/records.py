"""What a benchmark returns: figures with their spread, as a table, as JSON, and the machine that they were measured on."""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_LEAST_WIDTH = 130
"""Characters of a line of the table."""


@dataclass(frozen=True)
class Figure:
    """One measured quantity."""

    figure: str
    """Name; the size that it was measured at follows after a comma."""
    median: float
    """Over the repeats, like `low` and `high`."""
    low: float
    """The smallest."""
    high: float
    """The largest."""
    repeats: int
    """Number of measurements."""
    unit: str


def figure_of(figure: str, values: Sequence[float], unit: str) -> Figure:
    """Returns the figure of repeated measurements.

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError(f"{figure}: there is no measurement")
    return Figure(figure, statistics.median(values), min(values), max(values), len(values), unit)


def write_json(figures: Iterable[Figure], file: Path) -> None:
    """Writes a list of records, one for each figure, with the fields of `Figure`."""
    file.write_text(json.dumps([asdict(figure) for figure in figures], indent=1), encoding="utf-8")


def print_table(figures: Iterable[Figure]) -> None:
    """Prints one table, and below it the machine."""
    from rich.table import Column, Table

    from tppo_rl.core.wide_console import wide_console

    table = Table("median", "low", "high", "repeats", "unit", Column("figure", no_wrap=True))
    for figure in figures:
        numbers = (f"{number:.4g}" for number in (figure.median, figure.low, figure.high))
        table.add_row(*numbers, str(figure.repeats), figure.unit, figure.figure)
    console = wide_console(_LEAST_WIDTH)
    console.print(table)
    console.print(machine(), highlight=False, soft_wrap=True)


def machine() -> str:
    """Returns one line: processor, cores, load average now, torch threads, versions, GPU if there is one."""
    import torch

    threads = torch.get_num_threads()
    parts = [
        _processor(),
        f"{len(os.sched_getaffinity(0))} cores",
        f"load {os.getloadavg()[0]:.2f}",
        f"{threads} torch thread{'s' if threads > 1 else ''}",
        *(f"{name} {_version(name)}" for name in ("torch", "ray", "vllm")),
    ]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join(parts)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


def _version(name: str) -> str:
    """Version of an installed distribution, which for vLLM has another name on CPUs; nothing is imported."""
    for distribution in (name, f"{name}-cpu"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "not installed"
