"""The report of one sweep or several: `report.html`, its figures as PNG files, `trials.csv`."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np

from tppo_rl.core.errors import OptionError
from tppo_rl.core.whole_files import make_folder
from tppo_rl.experiment.provenance import read_provenance, this_command, versions
from tppo_rl.tune.analysis import QUALITY, WINDOW, Group, Task, split_tasks, words
from tppo_rl.tune.measures import BY_NAME, MEASURES, boundary_profile
from tppo_rl.tune.report_figures import draw_task
from tppo_rl.tune.report_page import Page, PageFigure, PageProvenance, PageTable, PageTask, render_page
from tppo_rl.tune.statistics import TOLERANCE, Comparison, Estimate, Inflection, method_of_interval
from tppo_rl.tune.sweep_folder import Trial, differing_keys, read_sweep

PAGE = "report.html"
TABLE = "trials.csv"
_IN_GROUPS = (
    "tokens_per_second",
    "seconds_to_target",
    "accuracy_equal_tokens",
    "accuracy_equal_time",
    "accuracy_final",
    "slot_occupancy",
    "tokens_per_update",
    "staleness",
    "policy_seconds",
    "critic_seconds",
    "explained_variance",
    "explained_variance_unfinished",
    "boundary_held",
    "boundary_bootstrap",
    "boundary_step",
)
_IN_TRIALS = ("accuracy_final", "accuracy_equal_tokens", "seconds_to_target", "tokens_per_second", "slot_occupancy")
_NONE = "-"


def write_report(sweeps: Sequence[Path], out: Path | None = None, *, target: float | None = None) -> Path:
    """Writes the report of sweeps and returns its page.

    Args:
        sweeps: Folders, each of an experiment on Tune or of a comparison.
        out: Folder of the report; None is `report` in that of the only sweep.
        target: Accuracy whose time is taken, a share; None: chosen for each task.

    Raises:
        OptionError: there is no such sweep, no trial of it has ended, or there are several and nothing says where to write.
    """
    if out is None and len(sweeps) != 1:
        raise OptionError(f"out=None: {len(sweeps)} sweeps make one report; name its folder with --out")
    trials = [trial for sweep in sweeps for trial in read_sweep(sweep)]
    tasks = split_tasks(trials, target=target)
    out = sweeps[0] / "report" if out is None else out
    make_folder(out, "--out")
    sections = []
    for index, task in enumerate(tasks):
        prefix = f"task{index + 1}_" if len(tasks) > 1 else ""
        figures = [PageFigure(f"{prefix}{figure.name}", figure) for figure in draw_task(task)]
        for shown in figures:
            (out / f"{shown.file}.png").write_bytes(shown.figure.png)
        sections.append(_section(task, figures))
    page = Page(
        title=f"Sweep{'s' if len(sweeps) > 1 else ''} {', '.join(sweep.resolve().name for sweep in sweeps)}",
        overview=_overview(trials, tasks),
        notes=_notes(trials),
        tasks=sections,
        methods=_methods(tasks),
        trials=_trials_table(trials, tasks),
        provenance=_provenance(sweeps),
    )
    path = out / PAGE
    path.write_text(render_page(page), encoding="utf-8")
    _write_csv(trials, tasks, out / TABLE)
    return path


# Words


def _overview(trials: Sequence[Trial], tasks: Sequence[Task]) -> str:
    ended = [trial for trial in trials if trial.compared]
    keys = differing_keys(ended)
    seeds = sorted({trial.seed for trial in ended})
    what = ", ".join(keys) if keys else "nothing but the seed"
    groups = sum(len(task.groups) for task in tasks)
    return (
        f"{len(ended)} trials in {groups} group{'s' if groups != 1 else ''}, with the seeds "
        f"{', '.join(map(str, seeds))}. What differs: {what}."
    )


def _notes(trials: Sequence[Trial]) -> list[str]:
    notes = []
    for status in ("failed", "unfinished", "stopped early"):
        names = [trial.name for trial in trials if trial.status == status]
        if names:
            notes.append(f"Left out of figures and statistics, {status}: {', '.join(names)}.")
    return notes


def inflection_words(task: Task, series: str, inflection: Inflection) -> str:
    """What was found out about the window at which efficiency begins to cost quality."""
    where = f"Inflection point ({series})" if series else "Inflection point"
    if inflection.status == "undetermined":
        return f"{where}: cannot be determined, because {inflection.reason}."
    groups = {int(group.x or 0): group for group in task.series[series]}
    longest, window = max(groups), int(inflection.window or 0)
    share = f" ({window / task.cap:.3g} of the response cap)" if task.cap else ""
    gain = groups[window].estimate("tokens_per_second").mean / groups[longest].estimate("tokens_per_second").mean
    speed = f"It trains {gain:.2f} times the tokens a second of window {longest}"
    if inflection.status == "not reached":
        hidden = inflection.comparisons[window]
        return (
            f"{where}: not reached. Even the shortest window, {window} tokens{share}, is not significantly less accurate at "
            f"equal tokens than the longest, {longest}: {_difference(hidden)}. {speed}."
        )
    worse = max(length for length in groups if length < window)
    text = f"{where}: window_length {window}{share}. The next shorter window, {worse}, is less accurate at equal tokens than "
    text += f"the longest, {longest}: {_difference(inflection.comparisons[worse])}."
    if window == longest:
        return f"{text} So every shorter window costs quality."
    return f"{text} Window {window} is not significantly so: {_difference(inflection.comparisons[window])}. {speed}."


def hold_words(task: Task) -> list[str]:
    """Where V(s_l) = V(s_(l-1)) is furthest from true, in the reference of every series; nothing without boundaries."""
    found = []
    for series in task.series:
        group = task.reference(series) if task.axis != WINDOW else task.series[series][0]
        steps = boundary_profile(group.trials, "step", "position_bin")
        width = max(trial.boundary_errors[0] for trial in group.trials)
        if not width or np.isnan(steps).all():
            continue
        worst = int(np.nanargmax(steps))
        held, bootstrap, step = (group.estimate(f"boundary_{which}").mean for which in ("held", "bootstrap", "step"))
        found.append(
            f"What hold neglects, |V(s_l) - V(s_(l-1))|, is largest where windows end {worst * width} to "
            f"{(worst + 1) * width - 1} tokens after the prompt: {steps[worst]:.3g} there, {step:.3g} on average ({group.label}). "
            f"Held values are {held:.3g} from the return on average, bootstrapped ones {bootstrap:.3g}."
        )
    return found


def _difference(comparison: Comparison) -> str:
    """In points of a hundred."""
    one = comparison.difference
    return (
        f"{100 * one.mean:+.1f} points (95 % interval {100 * one.low:+.1f} to {100 * one.high:+.1f}, "
        f"p = {comparison.p_holm:.2g} after Holm, {one.n} pairs)"
    )


def _methods(tasks: Sequence[Task]) -> list[str]:
    counts = sorted({len(group.trials) for task in tasks for group in task.groups})
    lines = [
        "Groups hold the trials that differ by their seed alone. n is their number; it is small, so intervals are wide and "
        "differences that are not significant are not shown to be absent.",
        "Intervals of means have 95 % confidence: "
        + "; ".join(f"n = {count}: {method_of_interval(count)}" for count in counts)
        + ". They speak of new seeds, of one task and one base model.",
        "Differences are those of runs with the same seed, tested by a paired t-test; p is corrected by Holm's method for the "
        "groups that are compared with one reference. A t-test trusts that differences are about normal, which a few seeds "
        "cannot show.",
        "Seconds are training alone: wall-clock without start-up and evaluations. Accuracy between two evaluations is "
        "interpolated linearly; equal tokens and equal time are where the shortest run of the task ended.",
        "Boundary errors compare what the critic said at the end of an unfinished window, when that was trained, with the "
        "return that followed, once the episode has ended. Late is the second half of the iterations.",
    ]
    if any(task.axis == WINDOW for task in tasks):
        lines.insert(
            2,
            "The inflection point is the shortest window that is not significantly less accurate at equal tokens than the "
            "longest window, nor is any window between them (one-sided paired t-test over seeds, Holm's correction for the "
            "number of windows, 5 % level). It cannot be determined with fewer than three seeds, nor where no window is worse but "
            f"an interval leaves room for a loss of more than {100 * TOLERANCE:.0f} points.",
        )
    for task in tasks:
        if task.limits.target is not None:
            name = f" of {task.title}" if task.title else ""
            lines.append(
                f"The target accuracy{name} is {task.limits.target:.2f}; equal tokens are {task.limits.tokens:,.0f}, equal time is "
                f"{task.limits.seconds:,.0f} s. If it was not given, it is four fifths of the way from the accuracy before "
                "training to the best at equal tokens."
            )
    return lines


# Tables


def _section(task: Task, figures: Sequence[PageFigure]) -> PageTask:
    findings = [inflection_words(task, series, found) for series, found in task.inflections.items()]
    findings += hold_words(task)
    return PageTask(task.title or "Results", findings, figures, _groups_table(task), _comparisons_table(task))


def _groups_table(task: Task) -> PageTable:
    """A row for each measure: groups are fewer, and a page of paper has room for them side by side."""
    rows = [
        [
            f"{BY_NAME[name].title}, {BY_NAME[name].unit}",
            *(_estimate(group.estimate(name), group) for group in task.groups),
        ]
        for name in _IN_GROUPS
        if any(group.by_seed(name) for group in task.groups)
    ]
    columns = [task.axis or "group", *(f"{group.label} (n = {len(group.trials)})" for group in task.groups)]
    return PageTable(columns, rows, "Mean and 95 % interval over seeds.", frozenset({0}))


def _estimate(one: Estimate, group: Group) -> str:
    if one.n == 0:
        return _NONE
    text = _number(one.mean)
    if one.n >= 3:
        text += f" ({_number(one.low)} … {_number(one.high)})"
    return text if one.n == len(group.trials) else f"{text}, {one.n} runs"


def _comparisons_table(task: Task) -> PageTable:
    rows = []
    for name, reference, group, comparison in task.comparisons:
        one = comparison.difference
        interval = f"{_number(one.low)} … {_number(one.high)}" if one.n >= 3 else _NONE
        p, p_holm = (_p(value) for value in (comparison.p, comparison.p_holm))
        difference = _signed(one.mean)
        rows.append([BY_NAME[name].title, group.label, reference, difference, interval, p, p_holm, str(one.n)])
    columns = ["measure", "group", "minus", "difference", "95 % interval", "p", "p after Holm", "pairs"]
    sides = "Two-sided"
    if task.axis == WINDOW:
        sides += f"; of {BY_NAME[QUALITY].title} between windows only a loss is asked for"
    return PageTable(columns, rows, f"Runs of the same seed, paired. {sides}.", frozenset({0, 1, 2}))


def _trials_table(trials: Sequence[Trial], tasks: Sequence[Task]) -> PageTable:
    keys = differing_keys([trial for trial in trials if trial.options])
    values = _values_by_trial(tasks)
    several = _are_several(trials)
    rows = [
        [
            *([trial.sweep] if several else []),
            trial.name if trial.experiment else _short(trial.name),
            *(words(trial.option(key)) if trial.options else _NONE for key in keys),
            str(trial.seed) if trial.options else _NONE,
            trial.status,
            *(
                _number(values[trial.folder][name]) if name in values.get(trial.folder, {}) else _NONE
                for name in _IN_TRIALS
            ),
        ]
        for trial in trials
    ]
    columns = [
        *(["sweep"] if several else []),
        "trial",
        *keys,
        "seed",
        "status",
        *(f"{BY_NAME[name].title}, {BY_NAME[name].unit}" for name in _IN_TRIALS),
    ]
    caption = "Of the options only those that are not the same in all trials."
    texts = columns.index("seed")
    return PageTable(columns, rows, caption, frozenset(range(texts)) | {texts + 1})


def _short(name: str) -> str:
    """A trial's folder on Tune without the options and the time in it: `TPPO_env_1a2b3_00004_4_lr=…` as `1a2b3_00004`."""
    found = re.search(r"_([0-9a-f]{5,8}_\d{5})_\d+(_|$)", name)
    return found.group(1) if found else name


def _are_several(trials: Sequence[Trial]) -> bool:
    return len({trial.folder.parent for trial in trials}) > 1


def _values_by_trial(tasks: Sequence[Task]) -> dict[Path, Any]:
    return {
        trial.folder: values
        for task in tasks
        for group in task.groups
        for trial, values in zip(group.trials, group.values, strict=True)
    }


def _write_csv(trials: Sequence[Trial], tasks: Sequence[Task], path: Path) -> None:
    """Every trial: its sweep if there are several, name, status, seed, the options that differ, every measure (empty where it has none)."""
    keys = differing_keys([trial for trial in trials if trial.options])
    values = _values_by_trial(tasks)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        several = _are_several(trials)
        sweep = ["sweep"] if several else []
        writer.writerow([*sweep, "trial", "status", "seed", *keys, *(measure.name for measure in MEASURES)])
        for trial in trials:
            measured = values.get(trial.folder, {})
            options = [trial.option(key) if trial.options else "" for key in keys]
            sweep = [trial.sweep] if several else []
            writer.writerow(
                [*sweep, trial.name, trial.status, trial.seed, *options, *(measured.get(m.name, "") for m in MEASURES)]
            )


def _p(value: float) -> str:
    if isnan(value):
        return _NONE
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _signed(value: float) -> str:
    """Without what the rounding of a mean of zeros leaves, and without a zero below zero."""
    return f"{round(value, 12) + 0.0:+.3g}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _provenance(sweeps: Sequence[Path]) -> list[PageProvenance]:
    made = [
        PageProvenance(f"The runs{name}, begun {entry['started']}", entry["command"], _versions(entry["versions"]))
        for sweep in sweeps
        for name in [f" of {sweep.resolve().name}" if len(sweeps) > 1 else ""]
        for entry in read_provenance(sweep)
    ] or [PageProvenance("The runs", "not recorded", "")]
    return [*made, PageProvenance("This page", this_command(), _versions(versions()))]


def _versions(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {number}" for name, number in found.items())
