"""What a run shows while it runs: a live panel in a terminal, a line an iteration elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tppo_rl.config.options import Options
from tppo_rl.core.waiting import Stage
from tppo_rl.experiment.stages import StageLines
from tppo_rl.experiment.time_left import Pace, minutes


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


class RunDisplay:
    """Shows stages and results of a run as they come; a context manager and a `Watcher`.

    Args:
        console: where to.
        name: of the run.
        pace: says how much time is left.
    """

    def __init__(self, console: Console, name: str, pace: Pace) -> None:
        self.stop_asked = False
        """Whether the user wants the run to stop."""
        self.in_update = False
        """Whether an iteration has come so far that it is finished, whatever the user wants."""
        self._console = console
        self._name = name
        self._pace = pace
        self._lines = StageLines(console, name)
        self._began = 0.0
        self._table: Table | None = None
        self._live = (
            Live(console=console, get_renderable=self._panel, refresh_per_second=1) if console.is_terminal else None
        )

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def stage(self) -> Stage | None:
        """The stage under way."""
        return self._lines.current

    def begin(self, stage: Stage) -> None:
        if stage.part == "update":
            self._pace.begin()
            self.in_update = self.in_update or stage.cut == "after"
        self._began = time.monotonic()
        self._lines.begin(stage)
        self._refresh()

    def advance(self, stage: Stage, done: int) -> None:
        self._lines.advance(stage, done)

    def end(self, stage: Stage) -> None:
        if stage.part == "evaluation":
            self._pace.evaluated(stage.words, time.monotonic() - self._began)
        self._lines.shows_ends = not self.stop_asked
        self._lines.end(stage)

    def show(self, result: Mapping[str, Any]) -> None:
        """Shows one result."""
        self.in_update = False
        self._lines.shows_updates = False
        cells = self._cells(result)
        if self._live is None:
            line = "  ".join(f"{label} {text}" for label, text in cells.items())
            self._console.print(f"{self._name}: {line}", soft_wrap=True, highlight=False)
            return
        table = Table(title=self._name)
        for label in cells:
            table.add_column(label, justify="right")
        table.add_row(*cells.values())
        self._table = table
        self._refresh()

    def message(self, text: str) -> None:
        """Prints a line above the panel."""
        self._console.print(text, soft_wrap=True, highlight=False, markup=False)

    def close(self) -> None:
        """Leaves the panel as it is, so that what comes next stands below it."""
        if self._live is not None:
            self._live.stop()

    def _panel(self) -> Group:
        status = self._lines.status()
        return Group(*([self._table] if self._table is not None else []), *([Text(status)] if status else []))

    def _refresh(self) -> None:
        if self._live is not None:
            self._live.refresh()

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
            "left": "?" if (left := self._pace.left(result)) is None else minutes(left),
        }


def number(value: float | None, spec: str) -> str:
    """A number in a table; a dash where there is none."""
    return "-" if value is None else format(value, spec)
