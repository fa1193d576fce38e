"""The command line. Heavy imports stand inside the commands, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from tppo_rl import __version__
from tppo_rl.bench.commands import bench
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.core.shared_options import FOLDER_OR_URI, set_option
from tppo_rl.experiment.commands import chat, evaluate, export, forecast, replay, rescore, retrain, rollouts, timeline
from tppo_rl.lab.commands import critic
from tppo_rl.plan.commands import plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from tppo_rl.config.run_files import Experiment
    from tppo_rl.core.storage import Storage

_results = click.option(
    "--results",
    type=FOLDER_OR_URI,
    default="runs",
    show_default=True,
    help="Folder of all runs, or its URI, such as s3://bucket/runs.",
)
_dry_run = click.option("--dry-run", is_flag=True, help="Check everything, print the plan, and start nothing.")
_resume = click.option("--resume", is_flag=True, help="Go on from the newest checkpoint.")
_plan = click.option(
    "--plan",
    "plan_file",
    type=click.Path(path_type=Path),
    help="What `tppo-rl plan --json` wrote, to be printed beside the truth in the end.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Truncated PPO for reasoning language models on Ray RLlib and vLLM."""


@main.group(invoke_without_command=True)
@click.option("--run", "algorithm", help="Algorithm, for example TPPO.")
@click.option("--env", help="Environment, for example tppo_rl/ArithmeticChain-v0.")
@click.option("--config", "config_text", default="{}", help="Options as YAML or JSON.")
@click.option(
    "--stop", "stop_text", default="{}", help="Limits as YAML or JSON, for example '{training_iteration: 10}'."
)
@click.option("--name", default="default", show_default=True, help="Name of the run's folder.")
@set_option
@_resume
@_dry_run
@_plan
@_results
@click.pass_context
@one_clear_error
def train(
    context: click.Context,
    algorithm: str | None,
    env: str | None,
    config_text: str,
    stop_text: str,
    name: str,
    overrides: tuple[str, ...],
    resume: bool,
    dry_run: bool,
    plan_file: Path | None,
    results: Path | str,
) -> None:
    """Train: `train file CONFIG`, or `train --run TPPO --env … --config '{…}'`."""
    if context.invoked_subcommand is not None:
        return
    if algorithm is None:
        click.echo(context.get_help())
        return
    from tppo_rl.config.run_files import make_experiment
    from tppo_rl.config.yaml_text import parse_yaml

    body = {"run": algorithm, "stop": parse_yaml(stop_text), "config": parse_yaml(config_text)}
    if env is not None:
        body["env"] = env
    experiments = _checked(name, lambda: [make_experiment(name, body, overrides)])
    _run_all(experiments, results, resume=resume, dry_run=dry_run, plan_file=plan_file)


@train.command("file")
@click.argument("config", type=click.Path(path_type=Path))
@set_option
@_resume
@_dry_run
@_plan
@_results
@one_clear_error
def train_file(
    config: Path, overrides: tuple[str, ...], resume: bool, dry_run: bool, plan_file: Path | None, results: Path | str
) -> None:
    """Run all experiments of a YAML file, in the schema of `rllib train file`."""
    from tppo_rl.config.run_files import load_run_file

    experiments = _checked(config.name, lambda: load_run_file(config, overrides))
    _run_all(experiments, results, resume=resume, dry_run=dry_run, plan_file=plan_file)


@main.group()
def tune() -> None:
    """Sweeps over options on Ray Tune."""


tune.add_command(train_file)


@main.command()
@click.argument("configs", metavar="CONFIG...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Runs of each experiment, with seeds 0, 1, …",
)
@click.option(
    "--search",
    "search_share",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Take the best point of each experiment's grid_search, found before in one run for each point of this share of its limits.",
)
@set_option
@_results
@one_clear_error
def compare(
    configs: tuple[Path, ...], seeds: int, search_share: float | None, overrides: tuple[str, ...], results: Path | str
) -> None:
    """Run all experiments of one YAML file or several with the same seeds, and compare them at equal budgets.

    Tokens, updates, wall time and learner time each have a table: accuracy where all runs have spent the same, with intervals
    over seeds and paired tests, and what an accuracy took. A comparison that was stopped goes on where it was.
    """
    from tppo_rl.config.run_files import load_run_file

    experiments = [experiment for config in configs for experiment in load_run_file(config, overrides)]
    from tppo_rl.core.storage import Storage, folder_here
    from tppo_rl.experiment.provenance import record_provenance
    from tppo_rl.tune.comparison import compare as compare_experiments

    name = "_".join(config.stem for config in configs)
    kept = _kept_at(results)
    folder = kept.joined(name) if isinstance(kept, Storage) else kept / name
    with record_provenance(folder_here(folder), folder if isinstance(folder, Storage) else None):
        compare_experiments(experiments, folder, seeds=range(seeds), search_share=search_share)


@main.command()
@click.argument("sweeps", metavar="SWEEP...", nargs=-1, required=True, type=FOLDER_OR_URI)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the report.  [default: SWEEP/report, if there is one SWEEP]",
)
@click.option(
    "--target",
    type=click.FloatRange(0, 1),
    help="Accuracy whose time is taken, a share.  [default: chosen for each task]",
)
@one_clear_error
def report(sweeps: tuple[Path | str, ...], out: Path | None, target: float | None) -> None:
    """Write the report of one sweep or several: one HTML page, figures as PNG files, a table of all trials."""
    from contextlib import ExitStack

    from tppo_rl.experiment.stored_runs import fetched
    from tppo_rl.tune.report import write_report

    if out is None and not all(isinstance(sweep, Path) for sweep in sweeps):
        raise OptionError("--out: a sweep at a URI is only read; give a folder of this machine for the report")
    with ExitStack() as stack:
        folders = [Path(stack.enter_context(fetched(sweep, "sweep", checkpoint="none"))) for sweep in sweeps]
        click.echo(f"report: {write_report(folders, out, target=target)}")


@main.command()
@click.option("--run", "algorithm", default="TPPO", show_default=True, help="Algorithm whose defaults are shown.")
@one_clear_error
def options(algorithm: str) -> None:
    """List every option with its default and meaning."""
    from rich.console import Console
    from rich.table import Table

    from tppo_rl.config.options import OPTIONS, algorithm_spec

    spec = algorithm_spec(algorithm, key="--run")
    table = Table("section", "option", "default", "meaning", title=f"{algorithm}: {spec.title}")
    last = None
    for key, option in OPTIONS.items():
        default = repr(spec.options.get(key, option.default))
        section = option.section if option.section != last else ""
        table.add_row(section, key, f"{default} (fixed)" if key in spec.reasons else default, option.description)
        last = option.section
    Console().print(table)


@main.command()
@click.option("--env", required=True, help="Environment with worked solutions, for example tppo_rl/ArithmeticChain-v0.")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the model.")
@click.option("--env-config", "env_config_text", default="{}", help="Options of the environment as YAML or JSON.")
@click.option("--seed", default=0, show_default=True, help="Of weights, demonstrations and sampling.")
@click.option("--threads", default=1, show_default=True, help="Torch threads; the result depends on their number.")
@set_option
@one_clear_error
def warmstart(env: str, out: Path, env_config_text: str, seed: int, threads: int, overrides: tuple[str, ...]) -> None:
    """Make a small base model: tokenizer and Qwen2 from scratch, trained on worked solutions."""
    from tppo_rl.config.run_files import parse_override
    from tppo_rl.config.yaml_text import parse_yaml
    from tppo_rl.core.errors import OptionError

    options = dict(parse_override(override) for override in overrides)
    env_config = parse_yaml(env_config_text)
    import torch

    from tppo_rl.pretrain.warmstart import warmstart as make_model

    torch.set_num_threads(threads)
    try:
        report = make_model(env_id=env, env_config=env_config, output_dir=out, seed=seed, **options)
    except ValueError as error:
        raise OptionError(str(error)) from None
    for how in ("sampled", "greedy"):
        click.echo(f"held-out accuracy, {how}: {report[how]['accuracy']:.1%} of {report[how]['prompts']} prompts")
    click.echo(f"{report['seconds']:.0f} s; model in {out}")


@main.command("check-env")
@click.argument("env", metavar="NAME")
@click.option("--env-config", "env_config_text", default="{}", help="Options of the environment as YAML or JSON.")
@click.option("--episodes", type=click.IntRange(1), default=16, show_default=True, help="Problems of each split.")
@click.option(
    "--deadline", type=click.FloatRange(0.01), default=10.0, show_default=True, help="Seconds of a reset or step."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Set an option of the environment; repeatable."
)
@one_clear_error
def check_env(env: str, env_config_text: str, episodes: int, deadline: float, overrides: tuple[str, ...]) -> None:
    """Say what an environment breaks: repeatability, splits, ends, gold and wrong answers, hostile texts, time.

    NAME is what the option `env` holds. The exit status is 1 where something is broken.
    """
    from tppo_rl.config.run_files import parse_override
    from tppo_rl.config.yaml_text import parse_yaml
    from tppo_rl.experiment.env_check import check_env as check

    env_config = parse_yaml(env_config_text)
    if not isinstance(env_config, dict):
        raise OptionError(f"--env-config={env_config_text!r}: must be a mapping, such as '{{task: chain_sum}}'")
    env_config |= dict(parse_override(override) for override in overrides)
    broken = 0
    for finding in check(env, env_config, episodes=episodes, deadline_s=deadline):
        color = {"pass": "green", "fails": "red"}.get(finding.verdict)
        click.echo(f"{click.style(f'{finding.verdict:14}', fg=color)}  {finding.check:32}  {finding.seen}")
        broken += finding.verdict == "fails"
    if broken:
        raise RunError(f"{env}: {broken} {'check fails' if broken == 1 else 'checks fail'}")


@main.command()
@click.argument("checkpoint", required=False, type=FOLDER_OR_URI)
@click.option("--quick", is_flag=True, help="Leave out what computes: an update and an engine.")
@one_clear_error
def doctor(checkpoint: Path | str | None, quick: bool) -> None:
    """Look at machine and installation as a run would use them; each finding with its remedy.

    With a CHECKPOINT (or the folder of a run, for its newest one; or the URI of either) look at that instead: every file is read and compared with what
    was written. The exit status is 1 where something is wrong.
    """
    from tppo_rl.bench.doctor import examine
    from tppo_rl.experiment.checkpoints import checkpoint_in, describe_checkpoint
    from tppo_rl.experiment.stored_runs import called, fetched

    if checkpoint is not None:
        with fetched(checkpoint, "checkpoint") as folder:
            for line in describe_checkpoint(checkpoint_in(Path(folder))):
                click.echo(called(line, folder, checkpoint))
        return
    wrong = 0
    for finding in examine(compute=not quick):
        color = {"fine": "green", "look": "yellow", "wrong": "red"}[finding.verdict]
        click.echo(f"{click.style(f'{finding.verdict:6}', fg=color)}  {finding.subject:16}  {finding.seen}")
        if finding.remedy:
            click.echo(f"{'':26}-> {finding.remedy}")
        wrong += finding.verdict == "wrong"
    if wrong:
        raise RunError(f"{wrong} {'finding is' if wrong == 1 else 'findings are'} wrong")


@main.command("import-model")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@one_clear_error
def import_model(file: Path, folder: Path) -> None:
    """Make a model folder out of a GGUF file, for `policy_model`."""
    from tppo_rl.pretrain.gguf_import import import_gguf

    import_gguf(file, folder)
    click.echo(f"model in {folder}")


for command in (
    bench, plan, evaluate, rescore, rollouts, forecast, timeline, replay, retrain, chat, export, critic,
):  # fmt: skip
    main.add_command(command)


def _checked(name: str, load: Callable[[], list[Experiment]]) -> list[Experiment]:
    """Reads and checks experiments, which may take long where data are read, and says so."""
    from rich.console import Console

    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.stages import StageDisplay

    with StageDisplay(Console(), name) as display, watched_by(display):
        return load()


def _kept_at(results: Path | str) -> Path | Storage:
    """The place of results that `--results` names."""
    from tppo_rl.core.storage import storage_at

    return results if isinstance(results, Path) else storage_at(results, "--results")


def _run_all(
    experiments: list[Experiment], results: Path | str, *, resume: bool, dry_run: bool, plan_file: Path | None
) -> None:
    from tppo_rl.core.storage import Storage, folder_here

    planned = None if plan_file is None else _planned(plan_file, experiments, resume=resume)
    kept = _kept_at(results)
    # A killed run may have ended before the later experiments of its file began.
    names = [experiment.name for experiment in experiments] if resume else []
    resumed = [name for name in names if len(experiments) == 1 or _is_there(kept, name)]
    if dry_run:
        from tppo_rl.experiment.dry_run import print_plan

        print_plan(experiments, kept, resumed=resumed)
        return
    from tppo_rl.experiment.provenance import record_provenance, resume_command

    for experiment in experiments:
        goes_on = experiment.name in resumed
        storage = kept.joined(experiment.name) if isinstance(kept, Storage) else None
        with record_provenance(folder_here(kept) / experiment.name, storage):
            if experiment.is_sweep:
                from tppo_rl.tune.trials import run_trials

                run_trials(experiment, kept, resume=goes_on)
            else:
                from tppo_rl.experiment.run import run_experiment

                run_experiment(experiment, kept, resume=goes_on, resume_command=resume_command(), planned=planned)


def _planned(file: Path, experiments: list[Experiment], *, resume: bool) -> dict[str, float]:
    """What a plan says of the one run that begins."""
    from tppo_rl.config.checks import check_options
    from tppo_rl.experiment.planned import planned_of

    if len(experiments) > 1 or experiments[0].is_sweep or resume:
        raise OptionError(
            f"--plan={str(file)!r}: it is of one run that begins; leave it out of sweeps, files of several runs and --resume"
        )
    (options,) = experiments[0].points()
    return planned_of(file, check_options(options, experiments[0].spec, other_keys=options))


def _is_there(results: Path | Storage, name: str) -> bool:
    return (results / name).exists() if isinstance(results, Path) else results.joined(name).is_there("--results")
