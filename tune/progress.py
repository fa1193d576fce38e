"""What a sweep shows while it runs: a live table of its trials in a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial
from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table

from tppo_rl.core.result_keys import check_limits, lookup
from tppo_rl.experiment.display import number
from tppo_rl.experiment.time_left import done_fraction, time_left

_LINE_EVERY_S = 10.0
_TABLE_EVERY_S = 0.5
_STATES = {
    Trial.PENDING: "waits",
    Trial.RUNNING: "runs",
    Trial.PAUSED: "paused",
    Trial.TERMINATED: "ended",
    Trial.ERROR: "failed",
}
_COLUMNS = ("trial", "state", "updates", "reward", "held-out", "tokens", "tokens/s", "left")


class SweepProgress(Callback):
    """Shows the trials of a sweep: state, reward, held-out accuracy, speed, and the time left of each and of all.

    Args:
        stop: Limits by result key; the nearest one decides the time left.
        num_trials: Of the sweep.
        console: Where to; None is standard output, and so it is in a sweep that goes on.
    """

    def __init__(self, stop: Mapping[str, float], num_trials: int, console: Console | None = None) -> None:
        self._stop = dict(stop)
        self._num_trials = num_trials
        self._reset(console or Console())

    def __getstate__(self) -> dict[str, Any]:
        return {"_stop": self._stop, "_num_trials": self._num_trials}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset(Console())

    def _reset(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None
        self._shown_at = 0.0
        self._checked = False
        self._started = time.monotonic()
        self._done_at_start: float | None = None
        self._trial_starts: dict[str, tuple[float, float]] = {}

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Says that a trial begins, or goes on."""
        self._trial_starts.pop(trial.trial_id, None)
        self._line(f"{name_of(trial)}: started", trials)

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """Notes where the trial stands; a line now and then where there is no terminal."""
        if not self._checked:
            # Tune itself would go on for ever.
            check_limits(result, self._stop, "stop")
            self._checked = True
        self._trial_starts.setdefault(trial.trial_id, (time.monotonic(), done_fraction(result, self._stop)))
        if not self._console.is_terminal and time.monotonic() - self._shown_at > _LINE_EVERY_S:
            self._shown_at = time.monotonic()
            cells = dict(zip(_COLUMNS, self._cells(trial, result), strict=True))
            text = "  ".join(f"{label} {cells[label]}" for label in _COLUMNS[2:])
            self._line(f"{cells['trial']}: {text}  sweep {self._time_left(trials)}", trials)

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Says how a trial ended."""
        cells = dict(zip(_COLUMNS, self._cells(trial, trial.last_result or {}), strict=True))
        text = "  ".join(f"{label} {cells[label]}" for label in ("updates", "reward", "held-out", "tokens"))
        self._line(f"{name_of(trial)}: ended  {text}", trials)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Says that a trial failed, and where its error is written."""
        self._line(f"{name_of(trial)}: failed, see {trial.error_file}", trials)

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Draws the table anew."""
        if not self._console.is_terminal or time.monotonic() - self._shown_at < _TABLE_EVERY_S:
            return
        self._shown_at = time.monotonic()
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(self._fitting_table(trials), refresh=True)

    def on_experiment_end(self, trials: list[Trial], **info: Any) -> None:
        """Leaves the last table on the screen."""
        if self._live is not None:
            self._live.update(self.table(trials), refresh=True)
            self._live.stop()
            self._live = None
        else:
            self._console.print(self.table(trials))

    def table(self, trials: list[Trial], rows: int | None = None) -> Table:
        """One row for each trial.

        Args:
            trials: Of the sweep.
            rows: At most so many; trials that run come first, then those that ended last. None: all, in their order.
        """
        title = f"{sum(map(_has_ended, trials))} of {self._num_trials} trials, {self._time_left(trials)}"
        shown = trials if rows is None else sorted(trials, key=_by_interest)[:rows]
        table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for column in _COLUMNS:
            is_number = column not in ("trial", "state")
            table.add_column(column, justify="right" if is_number else "left", no_wrap=is_number)
        for trial in shown:
            table.add_row(*self._cells(trial, trial.last_result or {}))
        if len(shown) < len(trials):
            table.caption = f"and {len(trials) - len(shown)} trials for which there is no room here"
        return table

    def _fitting_table(self, trials: list[Trial]) -> Table:
        """As many rows as the terminal is high: what a live table draws below its end cannot be seen."""
        rows = min(len(trials), max(1, self._console.height - 6))
        table = self.table(trials, rows)
        while rows > 1 and len(self._console.render_lines(table)) >= self._console.height:
            rows -= 1
            table = self.table(trials, rows)
        return table

    def _line(self, text: str, trials: list[Trial]) -> None:
        done = sum(map(_has_ended, trials))
        self._console.print(f"[{done}/{self._num_trials}] {text}", soft_wrap=True, highlight=False, markup=False)

    def _cells(self, trial: Trial, result: Mapping[str, Any]) -> tuple[str, ...]:
        return (
            name_of(trial),
            _STATES[trial.status],
            number(result.get("training_iteration"), "d"),
            number(lookup(result, "rollout/return_mean"), ".3f"),
            number(lookup(result, "heldout_latest/sampled/accuracy"), ".1%"),
            number(lookup(result, "tokens/sampled"), ",.0f"),
            number(lookup(result, "tokens/sampled_per_second"), ",.0f"),
            self._trial_time_left(trial, result),
        )

    def _trial_time_left(self, trial: Trial, result: Mapping[str, Any]) -> str:
        if _has_ended(trial) or trial.trial_id not in self._trial_starts:
            return "-"
        started, done = self._trial_starts[trial.trial_id]
        now = done_fraction(result, self._stop)
        return time_left(time.monotonic() - started, now - done, 1 - now)

    def _time_left(self, trials: list[Trial]) -> str:
        done = sum(1.0 if _has_ended(trial) else done_fraction(trial.last_result or {}, self._stop) for trial in trials)
        if self._done_at_start is None:
            self._done_at_start = done
        left = time_left(time.monotonic() - self._started, done - self._done_at_start, self._num_trials - done)
        return f"{left} left"


def name_of(trial: Trial) -> str:
    """What sets a trial apart from the others: the values of its axes."""
    values = {key: trial.config.get(key, value) for key, value in (trial.evaluated_params or {}).items()}
    return " ".join(f"{key.rpartition('/')[2]}={_short(value)}" for key, value in values.items()) or trial.trial_id


def _by_interest(trial: Trial) -> tuple[bool, bool, float]:
    ended_at = float((trial.last_result or {}).get("timestamp", 0.0)) if _has_ended(trial) else 0.0
    return trial.status != Trial.RUNNING, not _has_ended(trial), -ended_at


def _has_ended(trial: Trial) -> bool:
    return trial.status in (Trial.TERMINATED, Trial.ERROR)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
