"""The commands `tppo-rl bench …`. Heavy imports stand inside them, so that `--help` answers at once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tppo_rl.core.one_clear_error import BAD_INPUT, one_clear_error

if TYPE_CHECKING:
    from tppo_rl.bench.records import Figure


class _FolderHere(click.Path):
    """A folder of this machine; a URI would become the name of one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{str(value)!r}: give a folder of this machine", param, ctx)
        return super().convert(value, param, ctx)


_FOLDER = _FolderHere(path_type=Path)


def _measures(repeats: int) -> Callable[[Callable[..., Sequence[Figure]]], Callable[..., None]]:
    """Gives a command that returns figures its common options, and prints and writes what it returns."""

    def decorate(command: Callable[..., Sequence[Figure]]) -> Callable[..., None]:
        @click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the records to FILE.")
        @click.option(
            "--repeats", type=click.IntRange(1), default=repeats, show_default=True, help="Measurements of each figure."
        )
        @wraps(command)
        def wrapped(*, json_file: Path | None, **options: Any) -> None:
            from tppo_rl.bench.records import print_table, write_json

            try:
                figures = list(command(**options))
            except ValueError as error:
                click.echo(f"error: {error}", err=True)
                sys.exit(BAD_INPUT)
            print_table(figures)
            if json_file is not None:
                write_json(figures, json_file)

        return wrapped

    return decorate


@click.group()
def bench() -> None:
    """Measure this machine."""


@bench.command()
@click.option("--vocabulary", "vocabularies", multiple=True, default=(1024, 8192, 32768), show_default=True)
@click.option("--length", "lengths", multiple=True, default=(512, 2048, 8192), show_default=True)
@click.option("--tokens", default=65536, show_default=True, help="Tokens of an update.")
@click.option("--plan", is_flag=True, help="Instead: the memory that a run's plan gives a learner, against peaks.")
@click.option(
    "--pretrained",
    type=click.Path(path_type=Path),
    default=Path("models/smollm2-135m-instruct"),
    show_default=True,
    help="With --plan: folder of SmolLM2-135M.",
)
@click.option(
    "--only", multiple=True, metavar="TEXT", help="With --plan: settings with TEXT in their name; repeatable."
)
@click.option("--kept-blocks", is_flag=True, help="With --plan: peaks with malloc as a run has it, too.")
@_measures(repeats=1)
def memory(
    *, plan: bool, pretrained: Path, only: tuple[str, ...], kept_blocks: bool, repeats: int, **options: Any
) -> Sequence[Figure]:
    """Peak memory of the policy's update against vocabulary and sequence length; with --plan that of a learner."""
    from tppo_rl.bench.memory import memory_figures
    from tppo_rl.bench.memory_plan import memory_plan_figures

    if plan:
        return memory_plan_figures(pretrained=pretrained, only=only, kept_blocks=kept_blocks, repeats=repeats)
    return memory_figures(repeats=repeats, **options)


@bench.command()
@click.option("--tokens", type=click.IntRange(1), default=10**6, show_default=True, help="Tokens of all responses.")
@click.option(
    "--rllib/--no-rllib", default=True, show_default=True, help="Compare with RLlib's GAE, which imports ray."
)
@_measures(repeats=7)
def advantages(**options: Any) -> Sequence[Figure]:
    """EGAE of ragged responses against RLlib's GAE and a loop in Python."""
    from tppo_rl.bench.advantages import advantages_figures

    return advantages_figures(**options)


@bench.command()
@click.option("--model", default="tppo_rl/arithmetic-chain", show_default=True, help="Folder or hub id.")
@click.option(
    "--random-weights", metavar="SHAPE", help="Instead of a model: tiny, 50m, qwen2.5-0.5b, 1b or qwen2.5-1.5b."
)
@click.option("--length", "lengths", multiple=True, default=(64, 256), show_default=True, help="Of whole episodes.")
@click.option("--window", type=click.IntRange(1), default=32, show_default=True, help="Of T-PPO's fragments, tokens.")
@click.option("--tokens", type=click.IntRange(1), default=4096, show_default=True, help="Sampled tokens of an update.")
@click.option("--micro-batch-tokens", type=click.IntRange(1), default=2048, show_default=True)
@click.option("--dtype", default="float32", show_default=True, help="Of the computation: float32 or bfloat16.")
@click.option("--device", default="cpu", show_default=True, help="cpu or cuda.")
@click.option("--threads", type=click.IntRange(1), help="Torch threads.")
@click.option("--peak-tflops", type=float, help="Of the device, in this dtype: gives the utilization.")
@_measures(repeats=7)
def learner(**options: Any) -> Sequence[Figure]:
    """The update step against a bare torch loop over the same micro-batches, and the price of windows."""
    from tppo_rl.bench.learner import learner_figures
    from tppo_rl.bench.window_price import window_price

    return [*learner_figures(**options), *window_price(window=options["window"], response=500)]


@bench.command()
@click.option("--model", default="tppo_rl/arithmetic-chain", show_default=True, help="Folder or hub id.")
@click.option(
    "--random-weights", metavar="SHAPE", help="Instead of a model: tiny, 50m, qwen2.5-0.5b, 1b or qwen2.5-1.5b."
)
@click.option("--dtype", default="float32", show_default=True, help="Of the engine: float32 or bfloat16.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads.")
@click.option(
    "--linear", type=click.Choice(["in_place", "packed"]), help="Layout of linear layers.  [default: a run's]"
)
@click.option("--own-process", is_flag=True, help="Give the engine's core a process of its own.")
@click.option(
    "--transport",
    type=click.Choice(["object_store", "broadcast"]),
    default="object_store",
    show_default=True,
    help="As the option weight_transport; what Ray's object store takes is not measured.",
)
@_measures(repeats=9)
def sync(**options: Any) -> Sequence[Figure]:
    """Weights from a learner into a vLLM engine against a plain copy of the bytes that are sent."""
    from tppo_rl.bench.sync import sync_figures

    return sync_figures(**options)


@bench.command()
@click.option("--device", default="cuda", show_default=True, help="cuda or cpu.")
@click.option("--step", "steps", multiple=True, help="Only this step; repeatable.")
@click.option("--small", is_flag=True, help="Sizes that a CPU computes in seconds.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="Also write the reports to FILE.")
def device(*, device: str, steps: tuple[str, ...], small: bool, json_file: Path | None) -> None:
    """What a run needs of a device, step by step: arithmetic, speed, memory, weights, sharding, the engine."""
    from tppo_rl.bench.device_check import STEPS, check_device, print_reports, write_reports

    try:
        reports = check_device(
            device, steps or tuple(STEPS), small=small, begins=lambda step: click.echo(f"{step} ...", err=True)
        )
    except ValueError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(BAD_INPUT)
    print_reports(reports)
    if json_file is not None:
        write_reports(reports, json_file)
    sys.exit(0 if all(report.passed for report in reports) else 1)


@bench.command()
@click.option("--model", default="tppo_rl/arithmetic-chain", show_default=True, help="Folder, hub id or shipped model.")
@click.option("--slots", multiple=True, type=click.IntRange(1), default=(32, 64), show_default=True)
@click.option("--window", type=click.IntRange(1), default=32, show_default=True, help="Tokens of a fragment.")
@click.option("--mean-length", type=click.IntRange(1), default=256, show_default=True, help="Of responses, tokens.")
@click.option("--cap", type=click.IntRange(1), default=4096, show_default=True, help="Of responses, tokens.")
@click.option("--steps", type=click.IntRange(1), default=200, show_default=True, help="Engine steps of a measurement.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads of the engine.")
@click.option(
    "--verifier-seconds",
    type=click.FloatRange(0),
    help="Seconds of an answer: measures what they cost instead, in pairs.",
)
@click.option(
    "--workers", type=click.IntRange(1), default=16, show_default=True, help="Scoring workers for such answers."
)
@_measures(repeats=7)
def rollout(**options: Any) -> Sequence[Figure]:
    """An env-runner against the bare engine with as many endless requests."""
    from tppo_rl.bench.rollout import rollout_figures

    return rollout_figures(**options)


@bench.command()
@click.argument("config", required=False, type=click.Path(path_type=Path))
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Overrides an option of all experiments.")
@click.option("--results", type=click.Path(path_type=Path), default=Path("runs/pipeline"), show_default=True)
@click.option("--target", default=0.8, show_default=True, help="Held-out accuracy to reach, sampled, share.")
@click.option(
    "--overlap-updates", type=click.IntRange(0), default=5, show_default=True, help="Of `overlap_cost`; 0: without."
)
@_measures(repeats=3)
def pipeline(**options: Any) -> Sequence[Figure]:
    """T-PPO, asynchronous and synchronous, against full-response PPO: time to equal accuracy. CONFIG is a run file."""
    from tppo_rl.bench.pipeline import pipeline_figures

    return pipeline_figures(**options)


@bench.command()
@click.option("--actors", multiple=True, type=click.IntRange(1), default=(1, 2, 4, 8, 16), show_default=True)
@click.option("--in-process", multiple=True, type=click.IntRange(1), default=(1, 10, 100, 1000), show_default=True)
@click.option("--slots", type=click.IntRange(1), default=8, show_default=True, help="Of an env-runner.")
@click.option("--window", type=click.IntRange(1), default=32, show_default=True, help="Tokens of a fragment.")
@click.option("--mean-length", type=click.IntRange(1), default=48, show_default=True, help="Of responses, tokens.")
@click.option("--cap", type=click.IntRange(1), default=320, show_default=True, help="Of responses, tokens.")
@click.option("--step-seconds", type=float, default=0.01, show_default=True, help="Of an engine step of an actor.")
@click.option("--updates", type=click.IntRange(1), default=8, show_default=True, help="Of a measurement with actors.")
@_measures(repeats=3)
def scale(**options: Any) -> Sequence[Figure]:
    """The driver's time per fragment against the number of env-runners, on simulated engines."""
    from tppo_rl.bench.scale import scale_figures

    return scale_figures(**options)


@bench.command()
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="Run file, of which the first experiment is taken; else the one of `bench pipeline`.",
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override an option; repeatable.")
@click.option("--target", default=0.8, show_default=True, help="Held-out accuracy, sampled.")
@click.option("--every-tokens", type=click.IntRange(1), default=4096, show_default=True, help="Between evaluations.")
@click.option("--prompts", "num_prompts", type=click.IntRange(1), default=512, show_default=True, help="Held-out ones.")
@click.option("--limit-tokens", type=click.IntRange(1), help="Sampled tokens of a side; else the run file's.")
@click.option("--limit-seconds", type=float, default=900.0, show_default=True, help="On the clock of a side.")
@click.option(
    "--results",
    type=click.Path(path_type=Path),
    default=Path("runs/peers"),
    show_default=True,
    help="Sides that ended there with the same settings are not run again.",
)
@click.option("--trl-prompts", type=click.IntRange(1), default=2, show_default=True, help="Of TRL's batch.")
@click.option("--trl-generations", type=click.IntRange(2), default=8, show_default=True, help="Responses to each.")
@click.option("--trl-minibatch", type=click.IntRange(1), default=16, show_default=True, help="Responses of a pass.")
@click.option("--trl-lr", type=click.FloatRange(0, min_open=True), help="Learning rate of TRL; else the run file's.")
@click.option("--trl-iterations", type=click.IntRange(1), help="Passes of TRL over a batch; else the run file's.")
@click.option(
    "--trl-generation",
    type=click.Choice(["transformers", "continuous_batching", "vllm_colocate", "vllm_server"]),
    default="transformers",
    show_default=True,
)
@click.option("--trl-threads", type=click.IntRange(1), help="Torch threads of TRL; else one for each core.")
@_measures(repeats=3)
def peers(*, config: Path | None, **options: Any) -> Sequence[Figure]:
    """Time to the same held-out accuracy beside TRL's GRPO, seeds 0, 1, …"""
    from importlib.resources import as_file, files

    from tppo_rl.bench.peers import peers_figures

    with as_file(files("tppo_rl.configs") / "pipeline.yaml") as shipped:
        return peers_figures(config=config or shipped, **options)


@bench.command()
@click.argument("config", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--kills", type=click.IntRange(0), default=10, show_default=True, help="Of each run.")
@click.option(
    "--every", "every_s", type=click.FloatRange(1), default=20.0, show_default=True, help="Mean seconds between two."
)
@click.option(
    "--what", multiple=True, type=click.Choice(["env-runner", "hang", "engine", "learner", "driver", "save"]),
    default=("env-runner", "driver"), show_default=True,
    help="One is drawn at each kill. hang: an env-runner, stopped and not killed; save: the driver in the midst of a checkpoint.",
)  # fmt: skip
@click.option("--tokens", default=40_000, show_default=True, help="Of a run, without a CONFIG.")
@click.option("--seed", default=0, show_default=True, help="Of the first run, its moments and victims.")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Seeds, one run after the other.")
@click.option(
    "--undisturbed", type=click.IntRange(0), default=0, show_default=True, help="Runs without kills, to compare with."
)
@click.option("--results", type=_FOLDER, required=True, help="Folder for the runs.")
def chaos(
    config: Path | None, results: Path, tokens: int, runs: int, undisturbed: int, seed: int, kills: int, **options: Any
) -> None:
    """Kill processes of runs at random moments and say what became of them.

    CONFIG is a run file with one experiment that saves checkpoints and keeps all fragments; by default the long-tailed sums.
    """
    import yaml

    from tppo_rl.bench.chaos import chaos as disturbed
    from tppo_rl.bench.chaos import chaos_run
    from tppo_rl.bench.chaos_outcome import faults, rows_of

    if results.exists() and any(results.iterdir()):
        raise click.BadParameter(f"{str(results)!r} is not empty: give a new folder", param_hint="--results")
    own = chaos_run(tokens, options["what"])
    experiment = own if config is None else next(iter(yaml.safe_load(config.read_text()).values()))
    outcomes, beside = (
        [
            disturbed(results / f"{name}-{one}", experiment, kills=count, seed=one, **options)
            for one in range(seed, seed + number)
        ]
        for name, number, count in (("seed", runs, kills), ("undisturbed", undisturbed, 0))
    )
    for value, name in rows_of(outcomes, beside):
        click.echo(f"{value:>28}  {name}")
    wrong = faults(outcomes, beside)
    for line in wrong:
        click.echo(line, err=True)
    if wrong:
        sys.exit(1)


@bench.command()
@click.option(
    "--minutes",
    type=click.FloatRange(10),
    default=10.0,
    show_default=True,
    help="Of the run; in a shorter one the start is all that there is to see.",
)
@click.option("--results", type=_FOLDER, required=True, help="Folder for the run.")
@one_clear_error
def soak(results: Path, minutes: float) -> None:
    """Let a small run go on for long and say what grows: memory, open files, threads of each process, shared memory."""
    from rich.table import Column, Table

    from tppo_rl.bench.records import machine
    from tppo_rl.bench.soak import soak as soaked
    from tppo_rl.core.wide_console import wide_console

    found = soaked(results, minutes=minutes)
    table = Table(Column("quantity", no_wrap=True), "unit", "level", "an hour", "95 %", "")
    for one in found:
        interval = f"{one.low:+.3g} … {one.high:+.3g}"
        table.add_row(
            one.quantity, one.unit, f"{one.level:,.1f}", f"{one.per_hour:+.3g}", interval, "grows" if one.grows else ""
        )
    wide_console().print(table)
    click.echo(machine())
    growing = [one.quantity for one in found if one.grows]
    click.echo(f"grows: {'; '.join(growing)}" if growing else "nothing grows")
    if growing:
        sys.exit(1)


@bench.command("plan")
@click.option("--model", default="tppo_rl/arithmetic-chain", show_default=True, help="Folder, hub id or shipped model.")
@click.option("--slots", type=click.IntRange(1), default=32, show_default=True, help="That are predicted.")
@click.option(
    "--fitted-slots",
    multiple=True,
    type=click.IntRange(1),
    default=(12, 48),
    show_default=True,
    help="That are fitted.",
)
@click.option("--window", "windows", multiple=True, type=click.IntRange(1), default=(24, 96), show_default=True)
@click.option("--mean-length", type=click.IntRange(1), default=40, show_default=True, help="Of responses, tokens.")
@click.option("--cap", type=click.IntRange(1), default=320, show_default=True, help="Of responses, tokens.")
@click.option("--batch-tokens", type=click.IntRange(1), default=4096, show_default=True, help="Of an async update.")
@click.option("--batches", type=click.IntRange(1), default=2, show_default=True, help="Updates of a measurement.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Torch threads of each side.")
@click.option("--costs", "costs_file", type=click.Path(path_type=Path), help="Write the costs for `plan --costs FILE`.")
@_measures(repeats=2)
def plan_command(**options: Any) -> Sequence[Figure]:
    """What `tppo-rl plan` predicts against a real engine and real updates."""
    from tppo_rl.bench.plan import plan_figures

    return plan_figures(**options)
