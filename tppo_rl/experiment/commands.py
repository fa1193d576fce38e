"""The commands on a model or run that is there, from `evaluate` to `export`.

Heavy imports stand inside them, so that `--help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tppo_rl.core.errors import OptionError
from tppo_rl.core.one_clear_error import one_clear_error
from tppo_rl.core.shared_options import FOLDER_OR_URI, set_option
from tppo_rl.core.storage import is_uri, without_secrets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tppo_rl.experiment.forecast_tables import Kept


@click.command()
@click.argument("model")
@click.option("--env", help="Environment; by default that of the checkpoint's run.")
@click.option("--env-config", "env_config_text", help="Options of the environment as YAML or JSON.")
@click.option(
    "--n", "repeats", type=click.IntRange(0), default=32, show_default=True, help="Sampled answers to a problem."
)
@click.option("--problems", type=click.IntRange(1), help="The first ones of the held-out split.  [default: all]")
@click.option("--temperature", type=click.FloatRange(0, min_open=True), help="[default: that of the training]")
@click.option("--greedy", is_flag=True, help="Answer each problem once more, greedily.")
@click.option("--extract", default="last_number", show_default=True, help="What votes for a majority, as YAML.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the results.  [default: evaluations/MODEL, of a checkpoint evaluations/RUN-CHECKPOINT]",
)
@click.option("--against", type=click.Path(path_type=Path), help="Compare with the evaluation in this folder.")
@set_option
@one_clear_error
def evaluate(
    model: str,
    env: str | None,
    env_config_text: str | None,
    repeats: int,
    problems: int | None,
    temperature: float | None,
    greedy: bool,
    extract: str,
    out: Path | None,
    against: Path | None,
    overrides: tuple[str, ...],
) -> None:
    """Evaluate MODEL, a folder, hub id, checkpoint or run, or the URI of the last two, on held-out problems: avg@n, pass@k, maj@k with intervals.

    The same command goes on with an evaluation that was stopped.
    """
    if not repeats and not greedy:
        raise OptionError("--n=0: there is nothing to ask; give --greedy, or --n above 0")
    from rich.console import Console

    from tppo_rl.config.yaml_text import parse_yaml
    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.evaluate import evaluate as run
    from tppo_rl.experiment.stages import StageDisplay
    from tppo_rl.experiment.stored_runs import fetched

    values = {} if env is None else {"env": env}
    values |= {} if env_config_text is None else {"env_config": parse_yaml(env_config_text)}
    display = StageDisplay(Console(), "evaluate")
    with display, watched_by(display), fetched(model, "MODEL") as source:
        folder = out or Path("evaluations", _name_of(Path(source)))
        run(
            source,
            folder,
            name=without_secrets(model) if is_uri(model) else None,
            values=values,
            overrides=overrides,
            repeats=repeats,
            problems=problems,
            temperature=temperature,
            greedy=greedy,
            extract=parse_yaml(extract),
            against=against,
        )
    _show_report(folder)


def _name_of(model: Path) -> str:
    """Name for the evaluation of a model; checkpoints of different runs have the same names."""
    return f"{model.parents[1].name}-{model.name}" if model.parent.name == "checkpoints" else model.name


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--verifier", required=True, help="Name, module:function, ./file.py:function, or YAML with arguments.")
@click.option("--extract", default="last_number", show_default=True, help="What votes for a majority, as YAML.")
@one_clear_error
def rescore(folder: Path, verifier: str, extract: str) -> None:
    """Score the answers of an evaluation in FOLDER again, by another verifier."""
    from tppo_rl.config.yaml_text import parse_yaml
    from tppo_rl.experiment.evaluate import rescore as score

    score(folder, parse_yaml(verifier), parse_yaml(extract))
    _show_report(folder / "rescored")


@click.command()
@click.argument("model")
@click.option("--temperature", type=click.FloatRange(0), help="0 is greedy.  [default: that of the training]")
@click.option("--probabilities", is_flag=True, help="List the tokens of an answer with their probabilities.")
@click.option("--values", is_flag=True, help="List them with the critic's values; of a checkpoint or run.")
@set_option
@one_clear_error
def chat(model: str, temperature: float | None, probabilities: bool, values: bool, overrides: tuple[str, ...]) -> None:
    """Talk to MODEL, a folder, hub id, checkpoint or run, or the URI of the last two: a line is a prompt, an empty input ends it."""
    from rich.console import Console

    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.conversation import converse
    from tppo_rl.experiment.stages import StageDisplay
    from tppo_rl.experiment.stored_runs import fetched

    display = StageDisplay(Console(stderr=True), "chat")
    with display, watched_by(display), fetched(model, "MODEL") as source:
        converse(
            source,
            _typed_lines(),
            lambda text: click.echo(text, nl=False),
            values={},
            overrides=overrides,
            temperature=temperature,
            probabilities=probabilities,
            critic=values,
        )


@click.command()
@click.argument("run", type=FOLDER_OR_URI)
@click.option("--from", "first", type=click.IntRange(1), default=1, show_default=True, help="First iteration.")
@click.option("--to", "last", type=click.IntRange(1), help="Last iteration.  [default: the newest]")
@click.option("--finished/--open", "finished", default=None, help="Windows that ended their episode, or the others.")
@click.option("--right/--wrong", "correct", default=None, help="Right answers, or wrong ones.")
@click.option("--search", help="Words in prompt or response.")
@click.option(
    "--sort",
    type=click.Choice(["iteration", "reward", "length", "staleness"]),
    default="iteration",
    show_default=True,
    help="Largest first.",
)
@click.option("--ascending", is_flag=True, help="Smallest first.")
@click.option("--limit", type=click.IntRange(1), help="Most of them.  [default: 20; with --html 2000]")
@click.option("--show", "in_full", is_flag=True, help="Print them whole, tokens colored by their probability.")
@click.option("--html", type=click.Path(path_type=Path, dir_okay=False), help="Write one page for a browser instead.")
@click.option("--model", help="Whose tokenizer to take.  [default: that of the newest checkpoint]")
@one_clear_error
def rollouts(run: Path | str, **chosen: Any) -> None:
    """Look at what the model wrote in RUN, a folder or URI: the fragments that were kept, one row each, or all in one page."""
    from tppo_rl.experiment.stored_runs import fetched

    with fetched(run, "RUN", checkpoint="named") as folder:
        _show_rollouts(Path(folder), **chosen)


def _show_rollouts(
    run: Path,
    first: int,
    last: int | None,
    finished: bool | None,
    correct: bool | None,
    search: str | None,
    sort: str,
    ascending: bool,
    limit: int | None,
    in_full: bool,
    html: Path | None,
    model: str | None,
) -> None:
    from tppo_rl.algorithms.ray_start import quiet_libraries
    from tppo_rl.core.wide_console import wide_console
    from tppo_rl.experiment.rollout_view import chosen, read_rollouts, table_of, tokenizer_of, whole

    quiet_libraries()
    if html is not None:
        if in_full or ascending or sort != "iteration":
            raise OptionError("--html: the page shows whole texts and sorts them; drop --show, --sort and --ascending")
        from tppo_rl.experiment.rollout_page import write_page_of_run

        shown, recorded = write_page_of_run(
            html,
            run,
            model,
            first=first,
            last=last,
            most=limit or 2000,
            finished=finished,
            correct=correct,
            search=search,
        )
        click.echo(f"{html}: {shown} of {recorded} episodes, {html.stat().st_size / 1e6:.1f} MB")
        return
    tokenizer = tokenizer_of(run, model)

    def text(tokens: Sequence[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=True))

    found = chosen(
        read_rollouts(run, first, last),
        text,
        finished=finished,
        correct=correct,
        search=search,
        sort=sort,
        descending=not ascending,
    )
    kept = found[: limit or 20]
    console = wide_console(120)
    if in_full:
        for one in kept:
            console.print(whole(one, tokenizer), soft_wrap=True)
    else:
        console.print(table_of(kept, text))
    if len(kept) < len(found):
        click.echo(f"{len(kept)} of {len(found)} fragments; --limit N shows more")


def _typed_lines() -> Iterator[str]:
    """Lines from the terminal or a pipe, up to its end; on a terminal an empty one ends them too."""
    stream = sys.stdin
    while True:
        if stream.isatty():
            click.echo("> ", nl=False)
        line = stream.readline()
        if not line or (stream.isatty() and not line.strip()):
            return
        yield line


def _show_report(folder: Path) -> None:
    """Prints a report but for its table of problems."""
    text = (folder / "evaluation.md").read_text(encoding="utf-8")
    click.echo(text.partition("\n## Problems")[0])
    click.echo(f"{folder}: evaluation.md has a row for each problem, evaluation.json the figures")


@click.command()
@click.argument("checkpoint", type=FOLDER_OR_URI)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), help="Of the weights on file.")
@click.option("--adapter", is_flag=True, help="Write the adapter of a run with lora alone.")
@click.option("--critic", type=click.Path(path_type=Path), help="Also write the critic, into this folder.")
@one_clear_error
def export(checkpoint: Path | str, folder: Path, dtype: str | None, adapter: bool, critic: Path | None) -> None:
    """Write the policy of CHECKPOINT, or of a run's newest one, or at the URI of either, as a Hugging Face model into FOLDER."""
    from tppo_rl.experiment.export import export_policy
    from tppo_rl.experiment.stored_runs import called, fetched

    with fetched(checkpoint, "CHECKPOINT") as source:
        taken = export_policy(Path(source), folder, dtype=dtype, adapter=adapter, critic=critic)
        name = called(str(taken), source, checkpoint)
    click.echo(f"{name} is in {folder}: transformers and vLLM load it from there")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--from", "first", type=click.IntRange(1), default=1, show_default=True, help="First iteration.")
@click.option("--to", "last", type=click.IntRange(1), help="Last iteration.  [default: the newest]")
@click.option("--out", type=click.Path(path_type=Path), help="File.  [default: timeline.json in the run's folder]")
@one_clear_error
def timeline(run: Path, first: int, last: int | None, out: Path | None) -> None:
    """Write what driver, learner, engines and scoring workers of RUN did when, as a trace for https://ui.perfetto.dev."""
    import json

    from tppo_rl.observability.timeline import trace

    found = trace(run, first, last)
    file = out or run / "timeline.json"
    file.write_text(json.dumps(found), encoding="utf-8")
    click.echo(f"{file}: open it in https://ui.perfetto.dev or chrome://tracing")


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--iterations", type=click.IntRange(1), help="The first ones.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder of the replay's results.  [default: RUN/replay]")
@one_clear_error
def replay(run: Path, iterations: int | None, out: Path | None) -> None:
    """Make RUN again, which has recorded its events, and compare the weights after each update.

    The exit status is 1 where they differ; the first update after which they do is named.
    """
    from rich.console import Console

    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.replay import first_difference, report
    from tppo_rl.experiment.replay import replay as replayed
    from tppo_rl.experiment.stages import StageDisplay

    display = StageDisplay(Console(stderr=True), "replay")
    with display, watched_by(display):
        found = first_difference(replayed(run, out or run / "replay", iterations))
    click.echo(report(*found))


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--iterations", type=click.IntRange(1), help="The first ones.  [default: all]")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="Folder of the results.  [default: RUN/retrained, the next time RUN/retrained-2, …]",
)
@set_option
@one_clear_error
def retrain(run: Path, iterations: int | None, out: Path | None, overrides: tuple[str, ...]) -> None:
    """Train the kept batches of RUN (`record_batches`) again with other options of the learners, and show both.

    Nothing is sampled. Without --set the weights are those of the run, to the last bit.
    """
    from rich.console import Console

    from tppo_rl.config.run_files import parse_override
    from tppo_rl.core.waiting import watched_by
    from tppo_rl.experiment.retrain import free_folder, write_and_compare
    from tppo_rl.experiment.retrain import retrain as retrained
    from tppo_rl.experiment.stages import StageDisplay

    changes = dict(map(parse_override, overrides))
    display = StageDisplay(Console(stderr=True), "retrain")
    with display, watched_by(display):
        said = write_and_compare(retrained(run, changes, iterations), run, out or free_folder(run))
    click.echo(said)


@click.command()
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FOLDER_OR_URI)
@click.option(
    "--like",
    multiple=True,
    type=FOLDER_OR_URI,
    help="Ended runs of the same task, 19 or more, that narrow intervals; repeatable.",
)
@one_clear_error
def forecast(runs: tuple[Path | str, ...], like: tuple[Path | str, ...]) -> None:
    """Hold the forecasts of final accuracy of RUN... against the truth: each run, how many intervals held, how wide they are.

    A folder or URI of several runs stands for all of them. Where an ended run has made no forecast, it is made now from the first fifth
    of its results. A run is left out of what --like names, so RUN and --like may be the same.
    """
    from contextlib import ExitStack

    from tppo_rl.core.wide_console import wide_console
    from tppo_rl.experiment.forecast_tables import calibration_table, calibration_words, moved_by, read_kept, runs_in
    from tppo_rl.experiment.stored_runs import fetched

    def read(places: Sequence[Path | str], key: str) -> list[Kept]:
        kept = []
        with ExitStack() as stack:
            folders = [Path(stack.enter_context(fetched(place, key, checkpoint="none"))) for place in places]
            for run in (run for folder in folders for run in runs_in(folder, key)):
                found = read_kept(run)
                if isinstance(found, str):
                    click.echo(f"{run.name}: no forecast to hold against the truth: {found}")
                else:
                    kept.append(found)
        return kept

    kept = read(runs, "RUN")
    if like:
        others = read(like, "--like")
        kept = [moved_by(one, others) for one in kept]
    if not kept:
        return
    wide_console(100).print(calibration_table(kept))
    click.echo(calibration_words(kept))
