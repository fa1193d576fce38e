"""Runs one experiment from start to summary: build, train, checkpoint, evaluate, write."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from tppo_rl.algorithms.found_gpus import placed
from tppo_rl.algorithms.ray_start import quiet_libraries
from tppo_rl.config.checks import check_options
from tppo_rl.config.run_files import Experiment
from tppo_rl.core.errors import ProcessDied
from tppo_rl.core.result_keys import check_limits, lookup
from tppo_rl.core.storage import Storage, folder_here
from tppo_rl.core.waiting import StageCut, stage, watched_by
from tppo_rl.core.whole_files import make_folder
from tppo_rl.experiment.checkpoints import (
    checkpoint_path,
    checkpoint_size,
    find_newest_checkpoint,
    iteration_of,
    newest_checkpoint,
)
from tppo_rl.experiment.display import RunDisplay, sizes_table
from tppo_rl.experiment.forecast import Forecaster, beside_truth, results_up_to
from tppo_rl.experiment.forecast_tables import truth_table
from tppo_rl.experiment.interrupt import RunInterrupted, StopSwitch, listening
from tppo_rl.experiment.mirror import Mirror
from tppo_rl.experiment.planned import keep_planned, read_planned
from tppo_rl.experiment.result_log import ResultLog, last_result, read_results
from tppo_rl.experiment.resumable import check_resumable
from tppo_rl.experiment.saver import Saver, memory_of_saving
from tppo_rl.experiment.sole_run import sole_run
from tppo_rl.experiment.stored_runs import check_free, fetch_to_resume, set_aside
from tppo_rl.experiment.summary import SUMMARY, beside_plan, read_summary, summarize, summary_table, write_summary
from tppo_rl.experiment.time_left import Pace
from tppo_rl.plan.memory import Memory, check_memory, machine_memory, memory_of
from tppo_rl.plan.memory_table import memory_table
from tppo_rl.plan.placement import Placed
from tppo_rl.plan.placement_table import placement_table

FIGURE = "accuracy.png"


def run_experiment(
    experiment: Experiment,
    results: Path | Storage,
    *,
    resume: bool = False,
    console: Console | None = None,
    resume_command: str = "",
    planned: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """Runs an experiment that is one trial and returns its summary.

    Where a process dies that it cannot do without, it goes on from its newest checkpoint, `max_failures` times.

    Args:
        experiment: checked, without a grid.
        results: folder that holds one folder for each experiment; where it is at a URI the run works in a folder of this machine
            (`folder_here`), which is copied there at every checkpoint and in the end.
        resume: go on from the newest checkpoint of the experiment's folder.
        console: where to report; None is standard output.
        resume_command: command that goes on with the run, to be shown when Ctrl-C ends it.
        planned: what a plan says of the run (`planned_of`), to be held against it in the end; a run that goes on keeps what it began with.

    Raises:
        OptionError: another process trains the run, nothing to resume from, a checkpoint that is damaged, a place that cannot be
            written, or a stop key that no result has.
        RunError: results could not be copied to their URI; the folder of this machine holds them.
        ProcessDied: a process died once more than `max_failures`, or before the first checkpoint.
        RunInterrupted: Ctrl-C ended the run; what was trained is saved, unless it says `at_once`.
    """
    console = console or Console()
    folder = (folder_here(results) / experiment.name).resolve()
    with sole_run(folder):
        for left in range(experiment.max_failures, -1, -1):
            try:
                return _run_once(
                    experiment,
                    results,
                    folder,
                    resume=resume,
                    console=console,
                    resume_command=resume_command,
                    planned=planned,
                )
            except ProcessDied as error:
                newest = find_newest_checkpoint(folder)
                if left == 0 or newest is None:
                    if not experiment.max_failures:
                        raise
                    why = "is used up" if left == 0 else "helps nothing before the first checkpoint"
                    raise type(error)(f"{error}; max_failures={experiment.max_failures} {why}") from error
                words = f"{experiment.name}: {error}. It goes on from {newest}; max_failures={experiment.max_failures} has {left - 1} left"
                console.print(words, soft_wrap=True, highlight=False, markup=False)
                resume = True
    raise AssertionError("the last failure is raised")


def _run_once(
    experiment: Experiment,
    results: Path | Storage,
    folder: Path,
    *,
    resume: bool,
    console: Console,
    resume_command: str,
    planned: Mapping[str, float] | None,
) -> dict[str, Any]:
    storage, there = results.joined(experiment.name) if isinstance(results, Storage) else None, None
    if storage is not None:
        storage.check_writable("--results")
        words, there = _prepared(storage, folder, resume=resume)
        console.print(words, soft_wrap=True, highlight=False, markup=False)
    checkpoint = newest_checkpoint(folder) if resume else None
    make_folder(folder if resume else folder.parent, "--results")
    if not resume and (earlier := set_aside(folder)) is not None:
        console.print(f"the earlier run is kept in {earlier}", soft_wrap=True, highlight=False)
    folder.mkdir(parents=True, exist_ok=True)
    (options,) = experiment.points()
    found = placed(options, experiment.spec, join=True)
    if found is not None:
        options = options | found.values
    checked = check_options(options, experiment.spec, other_keys=options)
    if checkpoint is not None and (changed := check_resumable(checkpoint, checked, experiment.spec.name)):
        console.print(f"other options than its checkpoint's: {changed}", soft_wrap=True, highlight=False, markup=False)
    keep_planned(folder, planned)
    quiet_libraries()
    console.print(sizes_table(checked))
    if found is not None:
        console.print(placement_table(found))
    available = machine_memory()
    memory, in_background, words = memory_of_saving(
        experiment.checkpoint_config, memory_of(checked), checked, available
    )
    console.print(memory_table(memory, available))
    if words:
        console.print(words, soft_wrap=True, highlight=False)
    check_memory(memory, checked, available)
    by_iterations = checked.evaluation.evaluation_interval_unit == "iterations"
    pace = Pace(experiment.stop, checked.evaluation.evaluation_interval if by_iterations else None)
    display = RunDisplay(console, experiment.name, pace)
    start = 0 if checkpoint is None else iteration_of(checkpoint)
    mirror, keep = None, experiment.checkpoint_config.num_to_keep

    def at_once() -> bool:
        return switch.at_once

    if storage is not None:
        mirror = Mirror(folder, storage, keep, say=display.message, at_once=at_once, newest=there)
    elsewhere = None if mirror is None else mirror.holds
    switch = StopSwitch(display, folder, lambda: checkpoint_size(folder, memory), start, elsewhere)
    last = {} if checkpoint is None else last_result(folder, switch.iteration)
    if checkpoint is not None:
        pace.resume(last)
    if (summary := _summary_of_ended(folder, last, experiment.stop)) is not None:
        _say_ended(console, folder, summary, mirror)
        return summary
    run = _Run(
        experiment,
        folder,
        console,
        display,
        switch,
        Forecaster(folder, experiment.stop, checked.evaluation.evaluation_duration, display.message, start),
        resume_command,
        last,
        memory,
        found,
        Saver(keep, mirror, in_background=in_background, say=display.message, at_once=at_once),
    )
    try:
        with listening(switch), display, watched_by(display), mirror or nullcontext():
            return run.whole(options, checkpoint)
    except KeyboardInterrupt:
        if switch.number is None:
            raise
        raise RunInterrupted(switch.number, at_once=switch.at_once) from None


def _prepared(storage: Storage, folder: Path, *, resume: bool) -> tuple[str, int | None]:
    """Makes this machine's folder of a run at a URI ready; says where results go, and the iteration of what is there."""
    if resume:
        return fetch_to_resume(storage, folder, "--results")
    check_free(storage, "--results")
    return f"results: {storage.shown}, copied from {folder}", None


def build_algorithm(experiment: Experiment, options: Mapping[str, Any], folder: Path) -> Any:
    """Returns the algorithm of an experiment, started, with its engines; stop it in the end.

    Args:
        experiment: Checked.
        options: One point of its grid.
        folder: Of its results.
    """
    from tppo_rl.algorithms.ray_start import start_ray
    from tppo_rl.algorithms.rllib_classes import rllib_classes

    start_ray(options.get("runtime_env"))
    logging.getLogger("ray.rllib").setLevel(logging.ERROR)
    # Its errors are deaths of actors, many lines each, of which our own messages tell.
    logging.getLogger("ray.rllib.utils.actor_manager").setLevel(logging.CRITICAL)
    algorithm, config_type = rllib_classes(experiment.spec)
    config = config_type().update_from_dict(dict(options))
    config.results_folder = str(folder)
    return algorithm(config=config)


@dataclass(frozen=True)
class _Run:
    """One run, from its algorithm's start to its summary."""

    experiment: Experiment
    folder: Path
    console: Console
    display: RunDisplay
    switch: StopSwitch
    forecaster: Forecaster
    resume_command: str
    last: dict[str, Any]
    """Result of the checkpoint that the run goes on from; empty for a new run."""
    memory: Memory
    """What was planned."""
    placed: Placed | None
    """The placement, if the run has one."""
    saver: Saver

    def whole(self, options: Mapping[str, Any], checkpoint: Path | None) -> dict[str, Any]:
        """Starts, trains and stops the algorithm.

        Raises:
            OptionError: learners that write their slices of checkpoints do not see the run's folder.
            StageCut: Ctrl-C ended the run.
        """
        algorithm = build_algorithm(self.experiment, options, self.folder)
        try:
            # Now, and not at the first checkpoint.
            algorithm.learner_group.check_sees(self.folder)
            if checkpoint is not None:
                with stage("loading the checkpoint"):
                    algorithm.load_checkpoint(str(checkpoint))
                self.display.message(f"resumed from {checkpoint}")
            # Within the learners' life: some of them write.
            with self.saver:
                summary = self._train(algorithm)
        finally:
            # An update under way cannot be stopped; whoever asked twice does not wait for it.
            if not self.switch.at_once:
                if self.switch.asked:
                    algorithm.kill_env_runners()
                algorithm.stop()
        if self.switch.asked:
            raise StageCut
        return summary

    def _train(self, algorithm: Any) -> dict[str, Any]:
        """Trains until a limit is reached or Ctrl-C; both save a checkpoint and write the summary."""
        result, saved = self._iterations(algorithm)
        self.switch.doing = "saved"
        evaluation = result.get("evaluation")
        if not evaluation:
            evaluation = {} if self.switch.asked else algorithm.evaluate()
        result |= {"run": algorithm.run_totals(), "tokens": result["tokens"] | algorithm.token_counts()}
        summary = summarize(result, evaluation, interrupted=self.switch.asked)
        summary["memory"] = beside_plan(self.memory, algorithm.peak_memory(), self.placed)
        summary["planned"] = read_planned(self.folder)
        if self.forecaster.forecast is not None:
            results = results_up_to(read_results(self.folder), result["training_iteration"])
            summary["forecast"] = beside_truth(self.forecaster.forecast, results, summary)
        write_summary(self.folder, summary)
        _plot(self.folder)
        self.display.close()
        _print_summary(self.console, summary, self.folder)
        if saved is not None:
            # A run that has reached its limits needs others to go on.
            command = self.resume_command if self.switch.asked else ""
            how = f": {command}" if command else " with --resume"
            self.display.message(f"checkpoint: {saved} (go on{how})")
        return summary

    def _iterations(self, algorithm: Any) -> tuple[dict[str, Any], Path | None]:
        """Trains and saves; returns the last result and the last checkpoint."""
        experiment, config = self.experiment, self.experiment.checkpoint_config
        log = ResultLog(self.folder)
        result = self.last
        if result and _limit_reached(result, experiment.stop):
            return result, None
        while True:
            try:
                result = algorithm.train()
            except StageCut:
                # Sampling for the next update was cut short: the last result stands.
                if not self.switch.has_trained:
                    raise
            else:
                self.switch.iteration, self.switch.has_trained = result["training_iteration"], True
                log.append(result)
                self.display.show(result)
                self.forecaster.see(result)
                check_limits(result, experiment.stop, f"{experiment.name}.stop")
            iteration, every = self.switch.iteration, config.checkpoint_frequency
            ended = _limit_reached(result, experiment.stop)
            target, saved = checkpoint_path(self.folder, iteration), None
            self.saver.check()
            if every and iteration % every == 0:
                saved = self._save(algorithm, target)
            # Ctrl-C may have come meanwhile, and has promised a checkpoint.
            if ended or self.switch.asked:
                if saved is None and (config.checkpoint_at_end or every or self.switch.asked):
                    saved = self._save(algorithm, target)
                self.switch.doing = "saving"
                self.saver.wait()
                if saved is not None and self.switch.asked:
                    self.display.message(f"saved {saved}; now the summary is written")
                return result, saved

    def _save(self, algorithm: Any, target: Path) -> Path:
        self.switch.doing = "saving"
        self.saver.save(algorithm, target)
        self.switch.doing = "training"
        return target


def _summary_of_ended(folder: Path, last: Mapping[str, Any], stop: Mapping[str, float]) -> dict[str, Any] | None:
    """Returns the summary of a run that has reached a limit and written one; None: there is something left to do."""
    if not last or not _limit_reached(last, stop) or not (folder / SUMMARY).is_file():
        return None
    summary = read_summary(folder)
    return None if summary["interrupted"] or summary["updates"] != last["training_iteration"] else summary


def _say_ended(console: Console, folder: Path, summary: dict[str, Any], mirror: Mirror | None) -> None:
    """Shows the summary of a run that has ended, and copies what is not at its URI yet."""
    with mirror or nullcontext():
        _print_summary(console, summary, folder)
    text = f"the run has ended; raise its limit to go on: {folder.name}.stop"
    console.print(text, soft_wrap=True, highlight=False)


def _print_summary(console: Console, summary: Mapping[str, Any], folder: Path) -> None:
    console.print(summary_table(summary, folder))
    if (table := truth_table(summary)) is not None:
        console.print(table)


def _plot(folder: Path) -> None:
    from tppo_rl.experiment.plots import plot_runs

    plot_runs([folder], folder / FIGURE)


def _limit_reached(result: Mapping[str, Any], stop: Mapping[str, float]) -> bool:
    return any((value := lookup(result, key)) is not None and value >= limit for key, limit in stop.items())
