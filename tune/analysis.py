"""Trials of a sweep by task and group, their measures, and what differs beyond probability."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from typing import Any

from tppo_rl.tune.measures import BY_NAME, Limits, common_limits, measure
from tppo_rl.tune.statistics import (
    Alternative,
    Comparison,
    Estimate,
    Inflection,
    compare_with,
    find_inflection,
    mean_with_interval,
)
from tppo_rl.tune.sweep_folder import Trial, canonical, differing_keys

WINDOW = "window_length"
QUALITY = "accuracy_equal_tokens"
COMPARED = (QUALITY, "accuracy_mean", "tokens_per_second", "critic_seconds", "explained_variance", "boundary_held")
_TASK_KEYS = ("env", "policy_model")


@dataclass(frozen=True)
class Group:
    """Trials that differ by their seed alone."""

    label: str
    trials: Sequence[Trial]
    x: float | None
    """Value of the task's axis; None where there is none."""
    series: str
    """What it has in common with the other groups along the axis."""
    values: Sequence[Mapping[str, float]]
    """Measures of each trial."""

    def by_seed(self, name: str) -> dict[int, float]:
        """A measure of the trials that have it."""
        pairs = zip(self.trials, self.values, strict=True)
        return {trial.seed: values[name] for trial, values in pairs if name in values}

    def estimate(self, name: str) -> Estimate:
        """Mean and interval of a measure."""
        return mean_with_interval(list(self.by_seed(name).values()), bounds=BY_NAME[name].bounds)


@dataclass(frozen=True)
class Task:
    """Groups that can be compared: one environment, one base model."""

    title: str
    """What sets it apart from the sweep's other tasks; empty if there is one."""
    groups: Sequence[Group]
    axis: str | None
    """Option with numbers along which groups are drawn; None: they have names alone."""
    limits: Limits

    @property
    def series(self) -> dict[str, list[Group]]:
        """Groups along the axis, shortest first; without an axis all of them."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            found.setdefault(group.series, []).append(group)
        return {name: sorted(groups, key=lambda group: group.x or 0.0) for name, groups in found.items()}

    @property
    def cap(self) -> int | None:
        """`max_response_length`, if it is the same in all groups."""
        caps = {int(trial.option("max_response_length")) for group in self.groups for trial in group.trials}
        return caps.pop() if len(caps) == 1 else None

    def reference(self, series: str) -> Group:
        """The longest window of a series; else the group with the most options at their defaults."""
        groups = self.series[series]
        return groups[-1] if self.axis == WINDOW else _most_at_defaults(groups)

    @cached_property
    def inflections(self) -> dict[str, Inflection]:
        """Of every series of window lengths."""
        if self.axis != WINDOW:
            return {}
        return {
            name: find_inflection({int(group.x or 0): group.by_seed(QUALITY) for group in groups})
            for name, groups in self.series.items()
        }

    @cached_property
    def comparisons(self) -> list[tuple[str, str, Group, Comparison]]:
        """(measure, label of the reference, group, comparison).

        Groups of a series are compared with its reference, and those of several series at one point of the axis with the one
        of them that has the most options at their defaults. Every measure of every such family is corrected on its own.
        """
        families = [(self.reference(name), groups, self.axis == WINDOW) for name, groups in self.series.items()]
        if len(self.series) > 1:
            for x in sorted({group.x or 0.0 for group in self.groups}):
                here = [group for group in self.groups if group.x == x]
                families.append((_most_at_defaults(here), here, False))
        return [row for family in families for what in COMPARED for row in _compare(what, *family)]


def split_tasks(trials: Sequence[Trial], *, target: float | None = None) -> list[Task]:
    """Divides the trials that have ended into tasks and groups, and measures them.

    Args:
        trials: Of one sweep, or of several.
        target: Accuracy whose time is taken, a share; None: chosen for each task, see `measures.common_limits`.
    """
    ended = [trial for trial in trials if trial.compared]
    keys = [key for key in differing_keys(ended) if key in _TASK_KEYS or key.startswith("env_config")]
    by_task: dict[tuple[str, ...], list[Trial]] = {}
    for trial in ended:
        by_task.setdefault(tuple(canonical(trial.option(key)) for key in keys), []).append(trial)
    shown = [key for key in keys if key != "policy_model"] or keys
    sweeps = [{trial.sweep for trial in members} for members in by_task.values()]
    # Who gave every task a sweep of its own has named it.
    named = len(set.union(*sweeps)) == sum(map(len, sweeps)) == len(sweeps) > 1
    return [
        _task(members, name.pop() if named else ", ".join(words(members[0].option(key)) for key in shown), target)
        for members, name in zip(by_task.values(), sweeps, strict=True)
    ]


def words(value: Any) -> str:
    """An option's value as it is shown to readers."""
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _task(trials: Sequence[Trial], title: str, target: float | None) -> Task:
    keys = differing_keys(trials)
    axis = _axis(trials, keys)
    limits = common_limits(trials, target)
    by_options: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        by_options.setdefault(tuple(canonical(trial.option(key)) for key in keys), []).append(trial)
    at = [_x(members[0], axis) for members in by_options.values()]
    several = axis is not None and len(set(at)) < len(at)
    others = [key for key in keys if key != axis]
    shared = len(_shared_beginning([trial.experiment or "" for trial in trials]))
    groups = [
        Group(
            label=_label(members[0], keys, axis)[shared:],
            trials=sorted(members, key=lambda trial: trial.seed),
            x=x,
            series=_words_of(members[0], others) if several else "",
            values=[measure(trial, limits) for trial in sorted(members, key=lambda trial: trial.seed)],
        )
        for x, members in zip(at, by_options.values(), strict=True)
    ]
    task = Task(title, sorted(groups, key=lambda group: group.x or 0.0), axis, limits)
    if axis is not None:
        return task
    first = task.reference("")
    return replace(task, groups=[first, *(group for group in groups if group is not first)])


def _shared_beginning(names: Sequence[str]) -> str:
    """What all names begin with, up to a `_` or `-`: a task's name in those of its experiments."""
    if len(set(names)) < 2:
        return ""
    equal = takewhile(lambda letters: len(set(letters)) == 1, zip(*names, strict=False))
    beginning = "".join(letters[0] for letters in equal)
    return beginning[: max(beginning.rfind("_"), beginning.rfind("-")) + 1]


def _axis(trials: Sequence[Trial], keys: Sequence[str]) -> str | None:
    if WINDOW in keys:
        return WINDOW
    numbers = all(
        isinstance(trial.option(key), int | float) and not isinstance(trial.option(key), bool)
        for trial in trials
        for key in keys
    )
    return keys[0] if len(keys) == 1 and numbers else None


def _x(trial: Trial, axis: str | None) -> float | None:
    if axis is None:
        return None
    return float(trial.window if axis == WINDOW else trial.option(axis))


def _label(trial: Trial, keys: Sequence[str], axis: str | None) -> str:
    if trial.experiment is not None:
        return trial.experiment
    if not keys:
        return "all trials"
    return words(trial.option(axis)) if axis is not None and len(keys) == 1 else _words_of(trial, keys)


def _words_of(trial: Trial, keys: Sequence[str]) -> str:
    """Texts speak for themselves; numbers need the option's name."""
    values = [(key.rpartition(".")[2], trial.option(key)) for key in keys]
    return ", ".join(value if isinstance(value, str) else f"{key} {words(value)}" for key, value in values)


def _most_at_defaults(groups: Sequence[Group]) -> Group:
    first = [group.trials[0] for group in groups]
    keys = differing_keys(first)
    counts = [sum(canonical(trial.option(key)) == canonical(trial.default(key)) for key in keys) for trial in first]
    return groups[counts.index(max(counts))]


def _compare(
    what: str, reference: Group, groups: Sequence[Group], along_windows: bool
) -> list[tuple[str, str, Group, Comparison]]:
    """Of accuracy along windows only a loss is asked for."""
    others = [group for group in groups if group is not reference]
    alternative: Alternative = "less" if what == QUALITY and along_windows else "two-sided"
    found = compare_with(reference.by_seed(what), [group.by_seed(what) for group in others], alternative)
    return [
        (what, reference.label, group, comparison)
        for group, comparison in zip(others, found, strict=True)
        if comparison.difference.n
    ]
