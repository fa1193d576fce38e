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
from tppo_rl.core.nested import lookup


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
        self._started = time.monotonic()
        self._share_at_start: float | None = None
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
            "reward": _number(rollout.get("return_mean"), ".3f"),
            "length": _number(rollout.get("response_length_mean"), ".1f"),
            "held-out": _number(heldout.get("sampled", {}).get("accuracy"), ".1%"),
            "greedy": _number(heldout.get("greedy", {}).get("accuracy"), ".1%"),
            "tokens": f"{tokens['sampled']:,.0f}",
            "tokens/s": _number(tokens.get("sampled_per_second"), ",.0f"),
            "occupancy": _number(rollout.get("slot_occupancy"), ".3f"),
            "staleness": f"{_number(staleness.get('mean'), '.2f')} (max {_number(staleness.get('max'), '.0f')})",
            "left": self._time_left(result),
        }

    def _time_left(self, result: Mapping[str, Any]) -> str:
        share = max(
            (float(lookup(result, key) or 0) / limit for key, limit in self._stop.items() if limit), default=0.0
        )
        elapsed = time.monotonic() - self._started
        if self._share_at_start is None:
            self._share_at_start = share
            self._started = time.monotonic()
            return "?"
        gained = share - self._share_at_start
        if gained <= 0:
            return "?"
        seconds = max(0.0, elapsed * (1 - share) / gained)
        return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)
