"""Experiments side by side: every experiment of a run file with several seeds, one figure, one table."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table

from tppo_rl.config.run_files import Experiment, check_experiment
from tppo_rl.core.errors import OptionError
from tppo_rl.core.storage import Storage, folder_here
from tppo_rl.core.whole_files import write_whole
from tppo_rl.experiment.checkpoints import find_newest_checkpoint
from tppo_rl.experiment.learning_curves import known, learning_curve
from tppo_rl.experiment.plots import plot_comparison
from tppo_rl.experiment.run import run_experiment
from tppo_rl.experiment.summary import SUMMARY, read_summary
from tppo_rl.tune.baseline_search import Search, check_search, search, search_table
from tppo_rl.tune.comparison_page import (
    comparison_page,
    cost_table,
    equal_budget_table,
    plot_budgets,
    plot_over_time,
    sigmoid_table,
    terminal_table,
)
from tppo_rl.tune.compute_curve import fit_sigmoid
from tppo_rl.tune.equal_budgets import as_json, at_equal_budgets, plain, read_curve
from tppo_rl.tune.stored_comparison import OPTIONS_FILE, StoredComparison, options_text

FIGURE = "comparison.png"
BUDGETS_FIGURE = "equal_budgets.png"
TIME_FIGURE = "accuracy_over_time.png"
PAGE = "comparison.html"
FIGURES = "comparison.json"
CURVES = "curves.csv"


def compare(
    experiments: Sequence[Experiment],
    results: Path | Storage,
    *,
    seeds: Sequence[int],
    search_share: float | None = None,
    console: Console | None = None,
) -> dict[str, list[Path]]:
    """Runs every experiment once for each seed, one after another, then draws and tabulates all of them.

    A run that has ended is not repeated, one that was interrupted goes on from its newest checkpoint.

    Args:
        experiments: Checked; without grids, or all with grids of one size that are searched before.
        results: Folder of the comparison: a folder for each run, `comparison.png`, `curves.csv`, `equal_budgets.png`,
            `comparison.json` with all figures, and `comparison.html`, which shows them. Of one at a URI there is a copy on this machine
            (`folder_here`), for which runs that have ended are fetched.
        seeds: Of the runs.
        search_share: Share of an experiment's limits for each run of its search (`tppo_rl.tune.baseline_search`); None: no search.
        console: Where to report; None is standard output.

    Returns:
        Folders of the runs on this machine by name of the experiment, in the order of the seeds.

    Raises:
        OptionError: two experiments have one name, an experiment has no evaluations, or a grid that is not searched, a seed does not
            do, `results` holds a run of that name with other options, or it cannot be written.
        RunError: something could not be copied to its URI.
    """
    console = console or Console()
    _check_names([experiment.name for experiment in experiments])
    check_search(experiments, search_share)
    for experiment in experiments:
        for point in experiment.points():
            for seed in seeds:
                _with_seed(experiment.model_copy(update={"config": point}), seed)
    runs = _Runs(results, console)
    searches: dict[str, Search] = {}
    if search_share is not None:
        for place, experiment in enumerate(experiments):
            chosen, found = search(experiment, runs.run, share=search_share, seed=max(seeds) + 1)
            experiments = [*experiments[:place], chosen, *experiments[place + 1 :]]
            searches[experiment.name] = found
    folders = {one.name: [runs.run(_with_seed(one, seed)) for seed in seeds] for one in experiments}
    here = runs.here
    plot_comparison(folders, here / FIGURE)
    write_curves(folders, here / CURVES)
    console.print(comparison_table(folders))
    _compare_budgets(folders, searches, here, console)
    if runs.stored is not None:
        runs.stored.put(here, (FIGURE, CURVES, FIGURES, BUDGETS_FIGURE, TIME_FIGURE, PAGE))
    console.print(f"page: {here / PAGE}, curves: {here / CURVES}", soft_wrap=True, highlight=False)
    return folders


class _Runs:
    """Runs the experiments of a comparison, each at most once."""

    def __init__(self, results: Path | Storage, console: Console) -> None:
        self.here = folder_here(results)
        self.stored = StoredComparison(results) if isinstance(results, Storage) else None
        self._results = results
        self._console = console

    def run(self, run: Experiment) -> Path:
        """Runs an experiment without a grid, if it has not ended before, and returns its folder on this machine."""
        folder = self.here / run.name
        if self.stored is not None:
            self.stored.claim(run, folder)
        _claim(folder, run)
        if (folder / SUMMARY).is_file() and not read_summary(folder).get("interrupted"):
            self._console.print(f"{run.name} has ended before", highlight=False)
            return folder
        begun = find_newest_checkpoint(folder) is not None if self.stored is None else self.stored.has_checkpoint(run)
        try:
            run_experiment(run, self._results, resume=begun, console=self._console)
        finally:
            if folder.is_dir():
                write_whole(folder / OPTIONS_FILE, options_text(run))
        return folder


def _compare_budgets(
    folders: Mapping[str, Sequence[Path]], searches: Mapping[str, Search], results: Path, console: Console
) -> None:
    curves = {name: [read_curve(folder) for folder in runs] for name, runs in folders.items()}
    found = at_equal_budgets(curves)
    tables = [equal_budget_table(one) for one in found] + [cost_table(one) for one in found]
    fits = {
        name: fit_sigmoid([(run.spent["sampled_tokens"], run.accuracy) for run in runs])
        for name, runs in curves.items()
    }
    tables.append(sigmoid_table(fits))
    if searches:
        tables.append(search_table(searches))
    for table in tables:
        console.print()
        console.print(table.caption, highlight=False, style="bold")
        console.print(terminal_table(table))
    contents = {"budgets": as_json(found), "sigmoids": plain(fits), "searches": plain(searches)}
    write_whole(results / FIGURES, json.dumps(contents, indent=1) + "\n")
    plot_budgets(curves, results / BUDGETS_FIGURE)
    plot_over_time(curves, results / TIME_FIGURE)
    images = [results / BUDGETS_FIGURE, results / FIGURE]
    write_whole(results / PAGE, comparison_page(" / ".join(folders), tables, images))


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise OptionError(f"{twice[0]}: two experiments have this name, and with it one folder; rename one of them")


def _claim(folder: Path, run: Experiment) -> None:
    """Refuses to take the run of other options for this one."""
    if (folder / OPTIONS_FILE).is_file() and (folder / OPTIONS_FILE).read_text(encoding="utf-8") != options_text(run):
        raise OptionError(
            f"{run.name}: {folder} holds a run with other options; give another folder with --results, or move it away"
        )


def _with_seed(experiment: Experiment, seed: int) -> Experiment:
    config = experiment.config | {"seed": seed}
    if config.get("evaluation_interval") is None:
        raise OptionError(
            f"{experiment.name}.evaluation_interval=None: a comparison draws evaluations, and there would be none before "
            "the end; give the iterations between two, for example 4"
        )
    run = experiment.model_copy(update={"name": f"{experiment.name}-seed{seed}", "config": config})
    check_experiment(run)
    return run


def comparison_table(folders: Mapping[str, Sequence[Path]]) -> Table:
    """Accuracy before and after (mean over seeds, smallest and largest), response length, occupancy, seconds."""
    table = Table(
        Column("experiment", no_wrap=True), "held-out, sampled, %", "greedy, %", "length", "occupancy", "wall-clock, s"
    )
    for name, runs in folders.items():
        summaries = [read_summary(folder) for folder in runs]
        table.add_row(
            name,
            f"{_mean(summaries, 'heldout_accuracy_before', 100):.1f} → {_spread(summaries, 'heldout_accuracy_after', 100)}",
            f"{_mean(summaries, 'heldout_accuracy_before_greedy', 100):.1f} → "
            f"{_spread(summaries, 'heldout_accuracy_after_greedy', 100)}",
            _spread(summaries, "heldout_response_length_after"),
            f"{_mean(summaries, 'slot_occupancy'):.2f}",
            f"{_mean(summaries, 'wall_s'):.0f}",
        )
    return table


def write_curves(folders: Mapping[str, Sequence[Path]], path: Path) -> None:
    """Writes every evaluation of every run: experiment, run, sampled tokens, accuracies (shares), response length."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["experiment", "run", "sampled_tokens", "accuracy", "accuracy_greedy", "response_length"])
        for name, runs in folders.items():
            for folder in runs:
                for point in learning_curve(folder):
                    writer.writerow([name, folder.name, *point])


def _mean(summaries: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> float:
    return scale * sum(known(summary[key]) for summary in summaries) / len(summaries)


def _spread(summaries: Sequence[Mapping[str, Any]], key: str, scale: float = 1.0) -> str:
    values = [scale * known(summary[key]) for summary in summaries]
    return f"{sum(values) / len(values):.1f} ({min(values):.1f} … {max(values):.1f})"
