"""What a run would do, in tables; nothing is started."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tppo_rl.config.checks import check_options
from tppo_rl.config.options import OPTIONS, Options
from tppo_rl.config.run_files import Experiment
from tppo_rl.config.search_space import axes
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.experiment.display import sizes_table
from tppo_rl.plan.memory import check_memory, machine_memory, memory_of
from tppo_rl.plan.memory_table import memory_table
from tppo_rl.rollout.chat import check_chat


def print_plan(experiments: Sequence[Experiment], results: Path, console: Console | None = None) -> None:
    """Prints the plan of experiments that were checked.

    Args:
        experiments: In the order in which they would run.
        results: Folder of all runs.
        console: Where to; None is standard output.
    """
    console = console or Console()
    for experiment in experiments:
        first = next(experiment.points())
        options = check_options(first, experiment.spec, other_keys=first)
        console.print(run_table(experiment, options, results / experiment.name))
        console.print(sizes_table(options))
        memory, available = memory_of(options), machine_memory()
        console.print(memory_table(memory, available))
        check_memory(memory, options, available)
        check_chat(options)
        console.print(changed_table(options, experiment.spec))
    console.print("nothing was started (--dry-run)", highlight=False)


def run_table(experiment: Experiment, options: Options, folder: Path) -> Table:
    """What runs, on what, until when, and where it is kept."""
    spec, models, rollout = experiment.spec, options.models, options.rollout
    table = _table(experiment.name)
    if experiment.is_sweep:
        table.add_row("trials", _trials(experiment))
        for axis in axes(experiment.options()):
            table.add_row(f"  {axis.key}", f"{axis.word} {axis.argument}")
    table.add_row("algorithm", f"{spec.title} ({spec.name}), {spec.paper}")
    table.add_row("environment", f"{options.environment.env} {options.environment.env_config or ''}")
    if (problems := num_problems(options.environment, "train")) is not None:
        heldout = num_problems(options.environment, "heldout")
        table.add_row("problems", f"{problems:,} to train, {heldout:,} held out")
    table.add_row("policy", f"{models.policy_model}, {models.dtype}")
    table.add_row("critic", _critic(options))
    table.add_row("advantages", str(options.advantages.advantage_estimator.flat()))
    table.add_row("policy loss", str(options.policy_loss.policy_loss.flat()))
    rewards = options.rewards.rewards
    table.add_row("rewards", str(rewards.flat()))
    if rewards.listed:
        table.add_row("  names", ", ".join(part.name for part in rewards))
    table.add_row("mode", options.pipeline.mode)
    table.add_row("env-runners", f"{rollout.num_env_runners} x {rollout.num_envs_per_env_runner} slots")
    table.add_row("learners", str(options.learners.num_learners or "in the main process"))
    table.add_row("held-out evaluation", _evaluation(options))
    table.add_row("stop", ", or ".join(f"{key} >= {limit:,}" for key, limit in experiment.stop.items()))
    table.add_row("folder", str(folder))
    return table


def changed_table(options: Options, spec: AlgorithmSpec) -> Table:
    """The options that differ from the algorithm's defaults."""
    defaults = Options.of(spec.options)
    table = _table("changed options")
    for key in OPTIONS:
        value, default = options.flat()[key], defaults.flat()[key]
        if value != default:
            table.add_row(key, f"{value} (default {default})")
    return table


def _table(title: str) -> Table:
    table = Table(title=title, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _trials(experiment: Experiment) -> str:
    scheduler, searcher = experiment.tune_config.scheduler, experiment.tune_config.search_alg
    return f"{experiment.num_trials}, scheduler {scheduler}, search {searcher}"


def _critic(options: Options) -> str:
    critic, layers = options.models.critic, options.models.critic_layers
    if critic is None:
        return "none"
    backbone = options.models.policy_model if critic == "separate" else critic
    return f"{backbone}, {'all' if layers is None else f'the first {layers}'} layers"


def _evaluation(options: Options) -> str:
    evaluation = options.evaluation
    if evaluation.evaluation_interval is None:
        return "at the end"
    return (
        f"{evaluation.evaluation_duration} prompts, every {evaluation.evaluation_interval:,} "
        f"{evaluation.evaluation_interval_unit}, and at the end"
    )
