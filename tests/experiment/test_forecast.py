"""Forecasts of a run: made once at a fifth of its tokens, kept over resumes, held against the truth."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from rich.console import Console

from tests.tune.synthetic_sweep import evaluation, run_accounts
from tppo_rl.cli import main
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.forecast import (
    FORECAST,
    Forecaster,
    accuracies_so_far,
    beside_truth,
    make_forecast,
    read_forecast,
    results_up_to,
)
from tppo_rl.experiment.forecast_tables import truth_table
from tppo_rl.experiment.planned import keep_planned, planned_of, read_planned
from tppo_rl.experiment.result_log import ResultLog, read_results
from tppo_rl.experiment.summary import summarize, write_summary

TOKENS = 100
KEY = "tokens/sampled"
CONFIG = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def result(iteration: int, *, accuracy: float | None = 0.5, evaluated: float | None = None) -> dict[str, Any]:
    tokens = TOKENS * iteration
    made = {
        "training_iteration": iteration,
        "num_env_steps_sampled_lifetime": tokens,
        "tokens": {"sampled": tokens, "trained": tokens, "queued": 0, "in_flight": 0, "dropped": 0}
        | {"dropped_by_reason": {}},
        "rollout": {"finished_episodes": 20.0, "slot_occupancy": 0.9, "accuracy": accuracy},
        "staleness": {"mean": float(iteration)},
        "time": {"iteration": 2.0},
        "heldout_before": evaluation(0.3),
        "run": run_accounts(1.0),
        "mode": "async",
        "seed": 0,
    }
    return made if evaluated is None else made | {"evaluation": evaluation(evaluated)}


def write_run(folder: Path, final: float, iterations: int = 10) -> None:
    """A run that has ended at an accuracy, to which it rose linearly."""
    folder.mkdir(parents=True)
    log = ResultLog(folder)
    results = [
        result(iteration, accuracy=0.3 + (final - 0.3) * iteration / iterations)
        for iteration in range(1, iterations + 1)
    ]
    for each in results:
        log.append(each)
    write_summary(folder, summarize(results[-1], evaluation(final)))


def forecaster(folder: Path, lines: list[str], start: int = 0, stop: Mapping[str, float] | None = None) -> Forecaster:
    stop = {"num_env_steps_sampled_lifetime": 1000, "training_iteration": 50} if stop is None else stop
    return Forecaster(folder, stop, 512, lines.append, start)


def see(made: Forecaster, folder: Path, results: Sequence[Mapping[str, Any]]) -> None:
    log = ResultLog(folder)
    for each in results:
        log.append(each)
        made.see(each)


def shown(table: Any) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_accuracies_are_those_of_evaluations_and_of_batches() -> None:
    results = [result(1, accuracy=0.4), result(2, accuracy=None, evaluated=0.6), result(3, accuracy=float("nan"))]
    results[2]["heldout_before"] = {}
    heldout, training = accuracies_so_far(results, KEY, 1000)
    assert heldout.tolist() == [[0.0, 0.3, 512.0], [0.2, 0.6, 512.0]]
    # Sampled between nothing and a tenth of the tokens.
    assert training.tolist() == [[0.05, 0.4, 20.0]]


def test_a_forecast_is_made_once_after_a_fifth_of_the_tokens(tmp_path: Path) -> None:
    lines: list[str] = []
    made = forecaster(tmp_path, lines)
    see(made, tmp_path, [result(1)])
    assert not lines
    assert not (tmp_path / FORECAST).exists()
    see(made, tmp_path, [result(2), result(3), result(4)])
    (line,) = lines
    assert "forecast after 20% of 1,000 tokens: held-out accuracy will end between " in line
    assert "(90% interval, median " in line
    assert "from 1 evaluation, 40 training responses" in line
    kept = read_forecast(tmp_path)
    assert kept is not None
    assert kept == made.forecast
    assert (kept.iteration, kept.tokens, kept.budget) == (2, 200, 1000)
    assert kept.accuracy is not None
    assert kept.accuracy.prompts == 512
    assert kept.pace == {"seconds_per_update": 2.0, "slot_occupancy": 0.9, "staleness": 1.5}


def test_a_run_that_goes_on_keeps_its_forecast(tmp_path: Path) -> None:
    lines: list[str] = []
    see(forecaster(tmp_path, lines), tmp_path, [result(1), result(2), result(3)])
    later = forecaster(tmp_path, lines, start=3)
    see(later, tmp_path, [result(4)])
    assert len(lines) == 1
    assert later.forecast == read_forecast(tmp_path)


def test_a_run_that_goes_on_from_before_its_forecast_makes_it_again(tmp_path: Path) -> None:
    lines: list[str] = []
    see(forecaster(tmp_path, lines), tmp_path, [result(1), result(2), result(3)])
    again = forecaster(tmp_path, lines, start=1)
    assert again.forecast is None
    # What the killed run wrote after the checkpoint does not count any more.
    see(again, tmp_path, [result(2, evaluated=0.9)])
    assert len(lines) == 2
    assert "from 2 evaluations, 40 training responses" in lines[1]
    kept = read_forecast(tmp_path)
    assert kept is not None
    assert kept.iteration == 2
    assert [each["training_iteration"] for each in results_up_to(read_results(tmp_path), 2)] == [1, 2]


def test_what_cannot_be_foretold_is_one_line(tmp_path: Path) -> None:
    unknown = [result(number, accuracy=None) | {"heldout_before": {}} for number in (1, 2)]
    lines: list[str] = []
    see(forecaster(tmp_path, lines), tmp_path, unknown)
    assert lines == [
        "forecast after 20% of 1,000 tokens: none of accuracy, for no evaluation and no training response has said what is right"
    ]
    large = make_forecast([result(6)], KEY, 1000, 512)
    assert "a single update takes more than" in large.words()
    # Which part of a run is through is not known from a limit of another kind.
    see(forecaster(tmp_path / "..", lines, stop={"training_iteration": 3}), tmp_path, [result(3)])
    assert len(lines) == 1


def test_forecast_plan_and_truth_stand_side_by_side(tmp_path: Path) -> None:
    results = [result(number) for number in range(1, 6)]
    forecast = make_forecast(results[:2], KEY, 1000, 512)
    assert forecast.accuracy is not None
    summary = summarize(results[-1], evaluation(forecast.accuracy.high + 0.001))
    summary["forecast"] = beside_truth(forecast, results, summary)
    assert summary["forecast"]["accuracy"]["inside"] is False
    # Staleness of iterations 1 and 2, then of 3 to 5.
    assert summary["forecast"]["pace"]["staleness"] == {"forecast": 1.5, "truth": 4.0}
    summary["planned"] = {"seconds_per_update": 1.25}
    summary["memory"] = {"driver": {"planned": 2**30, "peak": 2**31}}
    text = shown(truth_table(json.loads(json.dumps(summary))))
    for words in (
        "at 20% of the tokens",
        "outside",
        "1.25",
        "1.50",
        "4.00",
        "1.00 GiB",
        "2.00 GiB",
        "after 500 tokens; the forecast is for 1,000",
    ):
        assert words in text, words
    interrupted = summary | {"forecast": beside_truth(forecast, results, summarize(results[-1], {}))}
    assert "not measured" in shown(truth_table(interrupted))
    assert truth_table(summarize(results[-1], {})) is None


def test_a_plan_is_that_of_the_runs_mode_and_window(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    arguments = ["plan", "--lengths", "uniform:10,60", "--slots", "8", "--batch-tokens", "512", "--window", "20"]
    assert CliRunner().invoke(main, [*arguments, "--json", str(file)]).exit_code == 0
    rows = {(row["mode"], row["window"]): row for row in json.loads(file.read_text(encoding="utf-8"))["predictions"]}
    cases: list[tuple[dict[str, Any], tuple[str, int | None]]] = [
        ({"window_length": 20}, ("async", 20)),
        ({"window_length": 20, "mode": "sync"}, ("sync", 20)),
        ({"window_length": None, "mode": "sync"}, ("ppo", None)),
    ]
    for given, key in cases:
        keep_planned(tmp_path, planned_of(file, Options.of(max_response_length=60, **given)))
        row, planned = rows[key], read_planned(tmp_path)
        assert planned["seconds_per_update"] == pytest.approx(row["seconds_per_token"] * row["tokens_per_update"])
        assert planned["staleness"] == row["staleness_mean"]
    keep_planned(tmp_path, None)
    assert read_planned(tmp_path) == planned, "a run that goes on keeps what it began with"
    with pytest.raises(
        OptionError, match=r"windows of 20 tokens in async mode, and the run has 30; plan it with --window 30"
    ):
        planned_of(file, Options.of(max_response_length=60, window_length=30))
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(OptionError, match="no plan"):
        planned_of(file, Options.of(max_response_length=60))
    with pytest.raises(OptionError, match="No such file"):
        planned_of(tmp_path / "none.json", Options.of(max_response_length=60))


def test_a_plan_that_will_not_do_ends_the_command_before_anything_is_touched(tmp_path: Path) -> None:
    train = ["train", "file", str(CONFIG), "--results", str(tmp_path), "--plan", str(tmp_path / "none.json")]
    missing, resumed = (CliRunner().invoke(main, [*train, *more]) for more in ([], ["--resume"]))
    assert missing.exit_code == resumed.exit_code == 2
    assert "No such file" in missing.output
    assert "it is of one run that begins" in resumed.output
    assert not list(tmp_path.iterdir())


def test_kept_runs_are_held_against_their_forecasts(tmp_path: Path) -> None:
    for index, final in enumerate(np.linspace(0.55, 0.75, 20)):
        write_run(tmp_path / "runs" / f"run{index}", float(final))
    write_run(tmp_path / "odd", 0.4)
    (tmp_path / "odd" / "summary.json").unlink()
    folders = [str(tmp_path / "runs"), str(tmp_path / "odd")]
    output = CliRunner().invoke(main, ["forecast", *folders]).output
    assert "odd: no forecast to hold against the truth: it has not ended" in output
    assert "20 of 20 inside (100%; exact intervals of 90% would hold 15 to 20 of 20)" in output
    assert "20 of the forecasts were made now" in output
    narrowed = CliRunner().invoke(main, ["forecast", folders[0], "--like", folders[0]]).output
    # Leaving one out, the runs with the lowest and the highest rank lie outside of the others.
    assert "18 of 20 inside" in narrowed
    width, narrow = (float(text.split("mean width ")[1].split()[0]) for text in (output, narrowed))
    assert narrow < 0.75 * width
    few = CliRunner().invoke(main, ["forecast", folders[0], "--like", str(tmp_path / "runs" / "run0")])
    assert few.exit_code == 2
    assert "--like: 0 runs beside run0 have ended" in few.output
    assert CliRunner().invoke(main, ["forecast", str(tmp_path / "none")]).exit_code == 2


def test_a_run_is_held_to_the_forecast_that_it_has_made(tmp_path: Path) -> None:
    write_run(tmp_path / "run", 0.6)
    see(forecaster(tmp_path / "run", []), tmp_path / "run", [])
    made = forecaster(tmp_path / "run", [])
    made.see(read_results(tmp_path / "run")[3])
    output = CliRunner().invoke(main, ["forecast", str(tmp_path / "run")]).output
    assert "40%" in output
    assert "0 of the forecasts were made now" in output
    # Its limit was raised: what came is not what was foretold.
    with (tmp_path / "run" / "result.json").open("a", encoding="utf-8") as file:
        file.write(json.dumps(result(14)) + "\n")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8")) | {"updates": 14}
    write_summary(tmp_path / "run", summary)
    output = CliRunner().invoke(main, ["forecast", str(tmp_path / "run")]).output
    assert (
        "run: no forecast to hold against the truth: it ended after 1,400 tokens, and its forecast is for 1,000"
        in output
    )
    # While it is under way there is no truth.
    (tmp_path / "run" / "summary.json").unlink()
    assert "none of them has ended" in CliRunner().invoke(main, ["forecast", str(tmp_path / "run")]).output
