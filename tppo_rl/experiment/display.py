"""What a run shows while it runs: a live panel in a terminal, a line an iteration elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from tppo_rl.config.options import Options
from tppo_rl.core.result_keys import lookup
from tppo_rl.plan.memory import GIB, Memory


def sizes_table(options: Options) -> Table:
    """The batch sizes of a run in their one vocabulary, all in tokens."""
    rollout, optimizer = options.rollout, options.optimizer
    asynchronous = options.pipeline.mode == "async"
    batch = options.batch_tokens if asynchronous else rollout.num_slots * rollout.window
    learners = max(1, options.learners.num_learners)
    table = Table(title="batch sizes", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column()
    rows = (
        ("slots", rollout.num_slots, "episodes in generation at a time"),
        ("window_length", rollout.window, "most sampled tokens of a fragment"),
        ("max_response_length", rollout.max_response_length, "cap of a response"),
        (
            "train batch",
            batch,
            "sampled tokens of an update, all learners" + ("" if asynchronous else " (at most)"),
        ),
        (
            "minibatch_size",
            optimizer.minibatch_size or batch // learners,
            "sampled tokens of an optimizer step, per learner",
        ),
        ("micro_batch_tokens", options.compute.micro_batch_tokens, "padded tokens of a forward pass"),
        ("num_epochs", optimizer.num_epochs, "passes over a batch"),
        ("max_staleness", options.staleness_bound, "most policy versions between sampling and training of a token"),
    )
    for name, size, meaning in rows:
        table.add_row(name, f"{size:,}", meaning)
    return table


def memory_table(memory: Memory, available: int) -> Table:
    """What a run needs of memory, process by process, beside what this machine has."""
    table = Table(title="memory", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for process, number in memory.processes.items():
        count = f"{number} processes" if number > 1 else ""
        table.add_row(process, f"{memory.of(process) / GIB:.2f} GiB", count, style="bold")
        for part in memory.parts:
            if part.process == process:
                table.add_row(f"  {part.name}", f"{part.size / GIB:.2f} GiB", part.meaning)
    words = "this machine has" if memory.total <= available else "MORE than this machine has:"
    style = None if memory.total <= available else "bold red"
    table.add_row("all processes", f"{memory.total / GIB:.2f} GiB", f"{words} {available / GIB:.1f} GiB", style=style)
    return table


class RunDisplay:
    """Shows results of a run as they come; a context manager.

    Args:
        console: where to.
        name: of the run.
        stop: limits by result key; the nearest one decides the time left.
    """

    def __init__(self, console: Console, name: str, stop: Mapping[str, float]) -> None:
        self._console = console
        self._name = name
        self._stop = stop
        self._first: tuple[float, float] | None = None
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, result: Mapping[str, Any]) -> None:
        """Shows one result."""
        cells = self._cells(result)
        if self._live is None:
            line = "  ".join(f"{label} {text}" for label, text in cells.items())
            self._console.print(f"{self._name}: {line}", soft_wrap=True, highlight=False)
            return
        table = Table(title=self._name)
        for label in cells:
            table.add_column(label, justify="right")
        table.add_row(*cells.values())
        self._live.update(table, refresh=True)

    def message(self, text: str) -> None:
        """Prints a line above the panel."""
        self._console.print(text, soft_wrap=True, highlight=False)

    def _cells(self, result: Mapping[str, Any]) -> dict[str, str]:
        rollout, tokens, staleness = result["rollout"], result["tokens"], result["staleness"]
        heldout = result["heldout_latest"]
        return {
            "iteration": str(result["training_iteration"]),
            "reward": number(rollout.get("return_mean"), ".3f"),
            "length": number(rollout.get("response_length_mean"), ".1f"),
            "held-out": number(heldout.get("sampled", {}).get("accuracy"), ".1%"),
            "greedy": number(heldout.get("greedy", {}).get("accuracy"), ".1%"),
            "tokens": f"{tokens['sampled']:,.0f}",
            "tokens/s": number(tokens.get("sampled_per_second"), ",.0f"),
            "occupancy": number(rollout.get("slot_occupancy"), ".3f"),
            "staleness": f"{number(staleness.get('mean'), '.2f')} (max {number(staleness.get('max'), '.0f')})",
            "left": self._time_left(result),
        }

    def _time_left(self, result: Mapping[str, Any]) -> str:
        done = done_fraction(result, self._stop)
        if self._first is None:
            # Not before: the engine's start says nothing of how long an iteration takes.
            self._first = time.monotonic(), done
        started, done_before = self._first
        return time_left(time.monotonic() - started, done - done_before, 1 - done)


def number(value: float | None, spec: str) -> str:
    """A number in a table; a dash where there is none."""
    return "-" if value is None else format(value, spec)


def done_fraction(result: Mapping[str, Any], stop: Mapping[str, float]) -> float:
    """How much of a run is done by the nearest of its limits, 0 to 1."""
    fractions = [float(lookup(result, key) or 0) / limit for key, limit in stop.items() if limit]
    return min(1.0, max(fractions, default=0.0))


def time_left(elapsed_s: float, gained: float, missing: float) -> str:
    """Minutes and seconds that the missing part takes if it goes on as the gained part did; `?` where nothing was gained."""
    if gained <= 0:
        return "?"
    seconds = int(elapsed_s * missing / gained)
    return f"{seconds // 60}:{seconds % 60:02d}"
