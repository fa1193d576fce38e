"""The command `tppo-rl critic lab`. Heavy imports stand inside it, so that `--help` answers at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click

from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.core.shared_options import set_option


@click.group()
def critic() -> None:
    """Judge critics."""


@critic.command()
@click.argument("model")
@click.option("--env", help="Environment; by default that of the checkpoint's run.")
@click.option("--env-config", "env_config_text", help="Options of the environment as YAML or JSON.")
@click.option(
    "--critic", "critics", multiple=True, type=click.Path(path_type=Path), help="Checkpoint or run; repeatable."
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
