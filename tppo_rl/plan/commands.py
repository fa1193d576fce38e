"""The command `tppo-rl plan`. What computes stands behind imports inside, so that `--help` answers at once."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tppo_rl.core.errors import OptionError
from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.core.shared_options import set_option

if TYPE_CHECKING:
    from tppo_rl.plan.costs import Costs
    from tppo_rl.plan.predict import Workload

_ONE_CORE = "one-core"
_DEFAULT_MODEL = "tppo_rl/arithmetic-chain"
_COUNT = click.IntRange(1)
_PATH = click.Path(path_type=Path)


@click.command()
@click.option(
    "--lengths",
    default="lognormal:48,1.1",
    show_default=True,
    help="Of responses: lognormal:MEAN,SIGMA, uniform:LOW,HIGH, fixed:LENGTH, a .json or .csv histogram, or a run's folder.",
)
@click.option("--cap", type=_COUNT, help="Longest response, tokens.  [default: that of the lengths]")
@click.option(
    "--window", "windows", type=_COUNT, multiple=True, help="Tokens; repeatable.  [default: cap, cap/2, cap/4, …]"
)
@click.option("--slots", default=64, show_default=True, help="Of one env-runner.")
@click.option("--prompt-length", type=float, help="Mean, tokens.  [default: that of the run, else 16]")
@click.option("--batch-tokens", default=4096, show_default=True, help="Trained tokens of an update in async mode.")
@click.option("--max-staleness", default=2, show_default=True, help="Policy versions, in async mode.")
@click.option("--policy-epochs", default=1, show_default=True)
@click.option("--critic-epochs", default=1, show_default=True)
@click.option(
    "--costs",
    default="one-core",
    show_default=True,
    help="one-core, a100, h100, h200, or a file of `bench plan --costs`.",
)
@click.option(
    "--model",
    default=_DEFAULT_MODEL,
    show_default=True,
    help="Whose shape counts: folder, hub id, or qwen2.5-0.5b, -1.5b, -7b, -32b.",
)
@click.option("--tensor-parallel", type=_COUNT, default=1, show_default=True, help="GPUs that are one device here.")
@click.option("--rollout-records", type=_PATH, help="Engine's costs instead: what `bench rollout --json` wrote.")
@click.option("--learner-records", type=_PATH, help="Learner's costs instead: what `bench learner --json` wrote.")
@click.option("--learner-speed", type=float, help="Instead: positions a second, forwards and backwards.")
@click.option(
    "--devices",
    type=_COUNT,
    default=2,
    show_default=True,
    help="Cores or GPUs to divide between env-runners and learners.",
)
@click.option("--colocated", is_flag=True, help="In sync modes both sides take turns on all devices.")
@click.option("--cached-contexts", is_flag=True, help="Learners keep keys and values (`context_cache_tokens`).")
@click.option("--memory", is_flag=True, help="Instead: memory of one learner and one env-runner, and its formula.")
@set_option
@click.option("--figure", type=_PATH, help="Also draw a PNG file.")
@click.option("--json", "json_file", type=_PATH, help="Also write the predictions to FILE.")
@one_clear_error
def plan(
    windows: tuple[int, ...],
    costs: str,
    model: str,
    tensor_parallel: int,
    rollout_records: Path | None,
    learner_records: Path | None,
    learner_speed: float | None,
    figure: Path | None,
    json_file: Path | None,
    memory: bool,
    overrides: tuple[str, ...],
    **options: Any,
) -> None:
    """Predict time per trained token of each window length and mode, and recommend one; with --memory, what fits."""
    if memory:
        _print_memory(model, costs, overrides, **options)
        return
    if overrides:
        raise click.UsageError("--set is for --memory")
    from tppo_rl.plan.predict import default_windows, predict, recommend
    from tppo_rl.plan.roofline import shape_of_model

    workload = _workload(**options)
    for window in windows:
        if window > workload.lengths.longest:
            raise OptionError(
                f"--window={window}: no response is longer than {workload.lengths.longest} tokens; give at most that"
            )
    machine = _costs(costs, model, tensor_parallel, rollout_records, learner_records, learner_speed)
    shape = shape_of_model(model)
    predictions = predict(workload, machine, shape, windows or default_windows(workload.lengths.longest))
    from rich.console import Console

    from tppo_rl.plan import report

    best = recommend(predictions)
    console = Console()
    # A table whose columns were cut off would be of no use in a log file either.
    console.width = max(console.width, 150)
    console.print(report.workload_line(workload, machine), soft_wrap=True, highlight=False)
    console.print(report.predictions_table(predictions, best, workload.lengths.longest))
    console.print(report.recommendation(predictions, best, workload), soft_wrap=True, highlight=False)
    if figure is not None:
        report.plot_predictions(predictions, best, figure)
    if json_file is not None:
        report.write_predictions(predictions, best, workload, machine, json_file)


def _print_memory(model: str, card: str, overrides: tuple[str, ...], *, devices: int, **options: Any) -> None:
    from rich.console import Console

    from tppo_rl.plan import card_memory, learner_memory
    from tppo_rl.plan.memory_table import memory_without_run
    from tppo_rl.plan.roofline import DEVICES

    if card not in (*DEVICES, _ONE_CORE):
        raise OptionError(
            f"--costs={card!r}: with --memory it names a card; give one of {', '.join(DEVICES)}, or {_ONE_CORE} for this machine"
        )
    workload = _workload(**{key: options[key] for key in ("lengths", "cap", "prompt_length", "slots")})
    tables = memory_without_run(
        model,
        card=card,
        devices=devices,
        slots=workload.slots,
        prompt_length=math.ceil(workload.prompt_length),
        response_length=workload.lengths.longest,
        overrides=overrides,
    )
    console = Console()
    console.width = max(console.width, 120)
    for table in tables:
        console.print(table)
    console.print(learner_memory.__doc__, highlight=False, markup=False, soft_wrap=True)
    if len(tables) > 1:
        console.print(card_memory.__doc__, highlight=False, markup=False, soft_wrap=True)


def _workload(lengths: str, cap: int | None, prompt_length: float | None, **options: Any) -> Workload:
    from tppo_rl.plan.length_files import prompt_length_of_run, read_lengths
    from tppo_rl.plan.predict import Workload

    responses = read_lengths(lengths, cap)
    if prompt_length is not None and not 1 <= prompt_length < math.inf:
        raise OptionError(f"--prompt-length={prompt_length:g}: must be at least 1 and finite")
    if prompt_length is None:
        prompt_length = prompt_length_of_run(Path(lengths)) if Path(lengths).is_dir() else 16.0
    return Workload(responses, prompt_length=prompt_length, **options)


def _costs(
    name: str,
    model: str,
    tensor_parallel: int,
    rollout_records: Path | None,
    learner_records: Path | None,
    learner_speed: float | None,
) -> Costs:
    from tppo_rl.plan import cost_files, costs
    from tppo_rl.plan.roofline import DEVICES, roofline_costs

    if learner_records is not None and learner_speed is not None:
        raise OptionError(
            f"learner_speed={learner_speed:g} and learner_records={str(learner_records)!r}: give one of them"
        )
    if name in DEVICES:
        result = roofline_costs(name, model, tensor_parallel)
    elif tensor_parallel > 1:
        raise OptionError(
            f"tensor_parallel={tensor_parallel} with costs={name!r}: it is for GPUs; use one of {', '.join(DEVICES)}"
        )
    elif name == _ONE_CORE:
        result = costs.ONE_CORE
        if model != _DEFAULT_MODEL and (rollout_records is None or (learner_records is None and learner_speed is None)):
            raise OptionError(
                f"model={model!r} with costs='one-core': these were measured with {_DEFAULT_MODEL}; measure yours with "
                f"`tppo-rl bench plan --model {model} --costs FILE`"
            )
    else:
        result = cost_files.read_costs(Path(name))
    engine, learner, source = result.engine, result.learner, result.source
    if rollout_records is not None:
        engine, source = cost_files.engine_of_records(rollout_records), f"{rollout_records.name}, {source}"
    if learner_records is not None:
        learner, source = cost_files.learner_of_records(learner_records), f"{learner_records.name}, {source}"
    if learner_speed is not None:
        learner, source = costs.learner_of_speed(learner_speed), f"{learner_speed:g} positions/s, {source}"
    return costs.Costs(engine, learner, source)
