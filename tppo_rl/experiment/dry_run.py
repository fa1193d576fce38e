"""What a run would do, in tables; nothing is started."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tppo_rl.algorithms.found_gpus import placed
from tppo_rl.config.checks import check_options
from tppo_rl.config.options import OPTIONS, Options
from tppo_rl.config.run_files import Experiment
from tppo_rl.config.search_space import axes
from tppo_rl.config.sections.models import SHARED
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.storage import Storage
from tppo_rl.experiment.display import sizes_table
from tppo_rl.experiment.resumable import check_resume
from tppo_rl.experiment.saver import memory_of_saving
from tppo_rl.learner.lora import check_adapters
from tppo_rl.plan.memory import check_memory, machine_memory, memory_of
from tppo_rl.plan.memory_table import memory_table
from tppo_rl.plan.placement_table import placement_table
from tppo_rl.rollout.chat import check_chat


def print_plan(
    experiments: Sequence[Experiment],
    results: Path | Storage,
    console: Console | None = None,
    *,
    resumed: Collection[str] = (),
) -> None:
    """Prints the plan of experiments that were checked.

    Args:
        experiments: In the order in which they would run.
        results: Folder of all runs.
        console: Where to; None is standard output.
        resumed: Names of those that would go on from their newest checkpoint, which is checked too, but for sweeps.

    Raises:
        OptionError: a checkpoint that a run cannot go on from, or a model too large for this machine.
    """
    console = console or Console()
    for experiment in experiments:
        first = next(experiment.points())
        room = placed(first, experiment.spec, join=False)
        if room is not None:
            first = first | room.values
        options = check_options(first, experiment.spec, other_keys=first)
        place = results.joined(experiment.name) if isinstance(results, Storage) else results / experiment.name
        console.print(run_table(experiment, options, place.shown if isinstance(place, Storage) else place))
        console.print(sizes_table(options))
        if room is not None:
            console.print(placement_table(room))
        memory, available = memory_of(options), machine_memory()
        words = ""
        if not experiment.is_sweep:
            memory, _, words = memory_of_saving(experiment.checkpoint_config, memory, options, available)
        console.print(memory_table(memory, available))
        if words:
            console.print(words, soft_wrap=True, highlight=False)
        check_memory(memory, options, available)
        check_chat(options)
        check_adapters(options)
        console.print(changed_table(options, experiment.spec))
        if experiment.name in resumed and not experiment.is_sweep:
            found = check_resume(place, options, experiment.spec.name)
            console.print(f"would go on from {found}", soft_wrap=True, highlight=False, markup=False)
    console.print("nothing was started (--dry-run)", highlight=False)


def run_table(experiment: Experiment, options: Options, folder: Path | str) -> Table:
    """What runs, on what, until when, and where it is kept."""
    spec, models, rollout = experiment.spec, options.models, options.rollout
    table = _table(experiment.name)
    if experiment.is_sweep:
        _add(table, "trials", _trials(experiment))
        for axis in axes(experiment.options()):
            _add(table, f"  {axis.key}", f"{axis.word} {axis.argument}")
    _add(table, "algorithm", f"{spec.title} ({spec.name}), {spec.paper}")
    _add(table, "environment", f"{options.environment.env} {options.environment.env_config or ''}")
    if (problems := num_problems(options.environment, "train")) is not None:
        heldout = num_problems(options.environment, "heldout")
        _add(table, "problems", f"{problems:,} to train, {heldout:,} held out")
    _add(table, "policy", f"{models.policy_model}, {models.dtype}")
    _add(table, "critic", _critic(options))
    _add(table, "advantages", str(options.advantages.advantage_estimator.flat()))
    _add(table, "policy loss", str(options.policy_loss.policy_loss.flat()))
    rewards = options.rewards.rewards
    _add(table, "rewards", str(rewards.flat()))
    if rewards.listed:
        _add(table, "  names", ", ".join(part.name for part in rewards))
    _add(table, "mode", options.pipeline.mode)
    _add(table, "env-runners", f"{rollout.num_env_runners} x {rollout.num_envs_per_env_runner} slots")
    _add(table, "learners", str(options.learners.num_learners or "in the main process"))
    _add(table, "held-out evaluation", _evaluation(options))
    _add(table, "stop", ", or ".join(f"{key} >= {limit:,}" for key, limit in experiment.stop.items()))
    _add(table, "folder", str(folder))
    return table


def changed_table(options: Options, spec: AlgorithmSpec) -> Table:
    """The options that differ from the algorithm's defaults."""
    defaults = Options.of(spec.options)
    table = _table("changed options")
    for key in OPTIONS:
        value, default = options.flat()[key], defaults.flat()[key]
        if value != default:
            _add(table, key, f"{value} (default {default})")
    return table


def _add(table: Table, name: str, value: str) -> None:
    """Adds a row. Values are texts of users, in which brackets are no markup."""
    table.add_row(Text(name), Text(value))


def _table(title: str) -> Table:
    table = Table(title=Text(title), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _trials(experiment: Experiment) -> str:
    scheduler, searcher = experiment.tune_config.scheduler, experiment.tune_config.search_alg
    return f"{experiment.num_trials}, scheduler {scheduler}, search {searcher}"


def _critic(options: Options) -> str:
    models = options.models
    if models.critic is None:
        return "none"
    layers = "all" if models.critic_layers is None else f"the first {models.critic_layers}"
    return f"{models.critic_model}, {layers} layers{', on the policy weights' * (models.critic == SHARED)}"


def _evaluation(options: Options) -> str:
    evaluation = options.evaluation
    if evaluation.evaluation_interval is None:
        return "at the end"
    return (
        f"{evaluation.evaluation_duration} prompts, every {evaluation.evaluation_interval:,} "
        f"{evaluation.evaluation_interval_unit}, and at the end"
    )
