"""The commands of `tppo-rl critic`. Heavy imports stand inside them, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.core.shared_options import set_option


@click.group()
def critic() -> None:
    """Judge and pretrain critics."""


@critic.command()
@click.argument("model")
@click.option("--env", help="Environment; by default that of the checkpoint's run.")
@click.option("--env-config", "env_config_text", help="Options of the environment as YAML or JSON.")
@click.option(
    "--critic",
    "critics",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Checkpoint or run, or what `critic pretrain` or `export --critic` wrote; repeatable.",
)
@click.option(
    "--tokens", default=1_000_000, show_default=True, type=click.IntRange(1), help="Budget of sampled tokens."
)
@click.option("--responses", default=256, show_default=True, type=click.IntRange(3), help="At most.")
@click.option("--prefixes", default=8, show_default=True, type=click.IntRange(2), help="States of a response.")
@click.option(
    "--continuations", default=8, show_default=True, type=click.IntRange(2), help="From each state, an even number."
)
@click.option(
    "--gradient-states",
    default=256,
    show_default=True,
    type=click.IntRange(0),
    help="States at which gradients are compared: 4 backward passes, and 6 for each critic; 0: none.",
)
@click.option("--split", type=click.Choice(["train", "heldout"]), default="heldout", show_default=True)
@click.option("--seed", default=0, show_default=True, help="Of the engine, and of the states that are taken.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the results.  [default: critic_labs/MODEL]")
@set_option
@one_clear_error
def lab(
    model: str,
    env: str | None,
    env_config_text: str | None,
    critics: tuple[Path, ...],
    tokens: int,
    responses: int,
    prefixes: int,
    continuations: int,
    gradient_states: int,
    split: str,
    seed: int,
    out: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Measure what critics know of MODEL's returns, beside what they could know by true values from continuations.

    MODEL is a folder, hub id, checkpoint or run; the critic of a checkpoint is measured too. The same command with another
    critic reads the samples again.
    """
    from rich.console import Console

    from tppo_rl.config.yaml_text import parse_yaml
    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.stages import StageDisplay
    from tppo_rl.lab.laboratory import measure
    from tppo_rl.lab.report import DETAILS, HTML_FILE, MARKDOWN_FILE
    from tppo_rl.lab.sampling import Plan

    values: dict[str, Any] = {} if env is None else {"env": env}
    values |= {} if env_config_text is None else {"env_config": parse_yaml(env_config_text)}
    folder = out or Path("critic_labs", Path(model).name)
    plan = Plan(tokens, responses, prefixes, continuations, cast(Any, split), seed)
    display = StageDisplay(Console(), "critic lab")
    with display, watched_by(display):
        measure(
            model,
            folder,
            values=values,
            overrides=overrides,
            plan=plan,
            critics=critics,
            gradient_states=gradient_states,
        )
    text = (folder / MARKDOWN_FILE).read_text(encoding="utf-8").partition(DETAILS)[0]
    click.echo("\n".join(line for line in text.splitlines() if not line.startswith("![")))
    click.echo(f"{folder / HTML_FILE} has calibration, boundary values and figures too")


@critic.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder for the critic.")
@click.option("--epochs", default=4, show_default=True, type=click.IntRange(1), help="Passes over the responses.")
@click.option(
    "--heldout",
    default=0.2,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of the problems whose responses only measure.",
)
@set_option
@one_clear_error
def pretrain(run: Path, out: Path, epochs: int, heldout: float, overrides: tuple[str, ...]) -> None:
    """Train a critic on the finished responses that RUN has kept (record_batches), for the option `critic` of other runs.

    After each pass it says what the critic explains of the variance of returns of held-out problems.
    """
    from rich.console import Console

    from tppo_rl.config.run_files import parse_override
    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.stages import StageDisplay
    from tppo_rl.lab.pretrain import pretrain as pretrained

    display = StageDisplay(Console(stderr=True), "critic pretrain")
    changes = dict(map(parse_override, overrides))
    with display, watched_by(display):
        for known, count in pretrained(run, out, changes=changes, epochs=epochs, heldout=heldout):
            passes = "before" if known.epoch == 0 else f"after pass {known.epoch}"
            click.echo(
                f"{passes}: explains {known.by_tokens:.3f} of the variance of returns, {known.by_responses:.3f} with one weight for each "
                f"of {count} held-out responses"
            )
    click.echo(f"critic: {out}")
