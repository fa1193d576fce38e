"""The comparison with TRL: times to an accuracy, records, refusals; small runs of both sides are marked slow."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.base_models import resolve_model
from tppo_rl.bench import peers
from tppo_rl.bench.peer_heldout import HeldOut
from tppo_rl.bench.peer_trl import Clock, Reward
from tppo_rl.bench.peers import (
    Point,
    SideResult,
    SideSettings,
    figures_of,
    peers_figures,
    read_result,
    run_side,
    time_to_accuracy,
    write_result,
)
from tppo_rl.cli import main
from tppo_rl.config.checks import check_options
from tppo_rl.core.prompts import prompt_seed
from tppo_rl.learner.models import load_causal_lm, parse_dtype

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
ARGUMENTS: dict[str, Any] = {
    "config": QUICKSTART,
    "overrides": (),
    "target": 0.8,
    "every_tokens": 1000,
    "num_prompts": 8,
    "limit_tokens": None,
    "limit_seconds": 5.0,
    "results": Path("unused"),
    "trl_prompts": 2,
    "trl_generations": 4,
    "trl_minibatch": 8,
    "trl_lr": None,
    "trl_iterations": None,
    "trl_generation": "transformers",
    "trl_threads": 1,
    "repeats": 1,
}
OPTIONS = {
    "policy_model": "tppo_rl/arithmetic-chain",
    "env": "tppo_rl/ArithmeticChain-v0",
    "env_config": {},
    "sampling": {"temperature": 1.0},
    "max_response_length": 40,
}


def points(*accuracies: float) -> list[Point]:
    """Evaluations every 100 tokens and 10 seconds."""
    return [Point(100 * index, 10.0 * index, accuracy) for index, accuracy in enumerate(accuracies)]


def result(*accuracies: float) -> SideResult:
    last = len(accuracies) - 1
    return SideResult(3.0, 100 * last, 10.0 * last, points(*accuracies))


@pytest.mark.parametrize(
    ("accuracies", "seconds"),
    [
        ((0.3, 0.5, 0.9), 17.5),  # 0.8 is three quarters of the way from 0.5 to 0.9
        ((0.3, 0.8), 10.0),
        ((0.9, 0.7), 0.0),
        ((0.3, 0.7, 0.6, 0.9, 0.5), 20.0 + 10.0 * 2 / 3),  # the first time counts, whatever follows
        ((0.3, 0.5), None),
    ],
)
def test_time_to_accuracy_is_interpolated(accuracies: Sequence[float], seconds: float | None) -> None:
    expected = seconds if seconds is None else pytest.approx(seconds)
    assert time_to_accuracy(points(*accuracies), 0.8) == expected


def test_speedup_is_the_ratio_of_times_seed_by_seed() -> None:
    sides = {"tppo": [result(0.3, 0.8), result(0.3, 0.8)], "trl": [result(0.3, 0.5, 0.8), result(0.3, 0.4, 0.5, 0.8)]}
    figures = {figure.figure: figure for figure in figures_of(sides, 0.8)}
    speedup = figures["speedup_vs_trl"]
    assert (speedup.low, speedup.median, speedup.high, speedup.repeats) == (2.0, 2.5, 3.0, 2)
    assert figures["seconds_to_accuracy_0.8, tppo"].median == 10.0
    assert figures["final_accuracy, trl"].median == 0.8
    assert figures["accuracy_before, trl"].median == 0.3
    assert figures["tokens_per_second, trl"].median == 10.0
    assert figures["startup_seconds, tppo"].median == 3.0


def test_what_was_not_reached_is_a_bound_and_no_figure() -> None:
    sides = {"tppo": [result(0.3, 0.8), result(0.3, 0.8)], "trl": [result(0.3, 0.8), result(0.3, 0.4, 0.5, 0.6)]}
    figures = {figure.figure: figure for figure in figures_of(sides, 0.8)}
    assert "speedup_vs_trl" not in figures
    assert "seconds_to_accuracy_0.8, trl" not in figures
    assert figures["speedup_vs_trl_at_least"].high == 3.0
    assert figures["seconds_to_accuracy_0.8_at_least, trl"].high == 30.0
    assert figures["final_accuracy, trl"].low == 0.6


def test_nothing_is_said_of_speed_where_tppo_falls_short() -> None:
    sides = {"tppo": [result(0.3, 0.4)], "trl": [result(0.3, 0.8)]}
    names = [figure.figure for figure in figures_of(sides, 0.8)]
    assert not any(name.startswith("speedup") for name in names)
    assert "seconds_to_accuracy_0.8_at_least, tppo" in names


def test_results_survive_their_file(tmp_path: Path) -> None:
    write_result(result(0.3, 0.8), tmp_path / "result.json")
    assert read_result(tmp_path / "result.json") == result(0.3, 0.8)


@pytest.mark.slow
def test_a_side_that_has_ended_is_not_run_again(tmp_path: Path) -> None:
    settings = SideSettings(
        options={"lr": 1e-4}, seed=3, target=0.8, limit_tokens=1, limit_seconds=1.0, every_tokens=1, num_prompts=1
    )
    # Such options end a side's process at once, with what it says.
    with pytest.raises(ValueError, match="tppo ended with exit code 1"):
        run_side("tppo", settings, tmp_path)
    write_result(result(0.3, 0.8), tmp_path / "tppo-seed3.json")
    assert run_side("tppo", settings, tmp_path) == result(0.3, 0.8)
    with pytest.raises(ValueError, match=r"tppo-seed3\.json is of other settings"):
        run_side("tppo", replace(settings, target=0.9), tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": 1.0}, "target=1.0"),
        ({"trl_minibatch": 3}, "trl_minibatch=3"),
        ({"overrides": ("lr={grid_search: [1e-4, 1e-5]}",)}, "without grids"),
        ({"overrides": ("run=PPO", "window_length=null", "mode=sync")}, "run='PPO'"),
        ({"overrides": ("rewards=plus_minus_one",)}, "rewards='plus_minus_one'"),
    ],
)
def test_bad_options_are_refused_before_anything_starts(
    changes: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "run_side", lambda *_: pytest.fail("a side was started"))
    with pytest.raises(ValueError, match=message):
        peers_figures(**(ARGUMENTS | changes))


def test_without_trl_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    run = CliRunner().invoke(main, ["bench", "peers"])
    assert run.exit_code == 2
    assert "trl is not installed" in run.output


def test_options_of_evaluations_on_the_way_are_left_out() -> None:
    options, _ = peers._options(QUICKSTART, ("evaluation_interval=512", "evaluation_interval_unit=tokens"))
    assert options["evaluation_interval"] is None
    check_options(options, SPEC, other_keys=options)


def test_both_sides_get_the_options_of_the_run_file(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, SideSettings]] = []

    def run(side: str, settings: SideSettings, _: Path) -> SideResult:
        asked.append((side, settings))
        return result(0.3, 0.8)

    monkeypatch.setattr(peers, "run_side", run)
    peers_figures(**(ARGUMENTS | {"repeats": 2, "overrides": ("lr=2e-4",)}))
    assert [(side, settings.options["seed"]) for side, settings in asked] == [
        ("tppo", 0),
        ("trl", 0),
        ("tppo", 1),
        ("trl", 1),
    ]
    settings = asked[0][1]
    assert settings.options["lr"] == 2e-4
    assert settings.options["policy_model"] == "tppo_rl/arithmetic-chain"
    assert settings.options["evaluation_interval"] is None
    assert settings.limit_tokens == 250_000


@pytest.mark.parametrize(
    ("asked", "given"),
    [
        ({"trl_threads": 3}, {"threads": 3}),
        ({"trl_threads": None}, {"threads": len(os.sched_getaffinity(0))}),
        ({}, {"lr": 1e-4, "iterations": 1}),
        ({"trl_lr": 3e-5, "trl_iterations": 4}, {"lr": 3e-5, "iterations": 4}),
    ],
)
def test_trl_has_settings_of_its_own(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any], given: dict[str, Any]
) -> None:
    found: list[dict[str, Any]] = []

    def run(side: str, settings: SideSettings, _: Path) -> SideResult:
        if side == "trl":
            found.append(settings.trl)
        return result(0.3, 0.8)

    monkeypatch.setattr(peers, "run_side", run)
    peers_figures(**(ARGUMENTS | asked))
    (settings,) = found
    assert settings.items() >= given.items()


def test_trl_gets_the_prompts_and_rewards_of_a_run() -> None:
    reward = Reward(OPTIONS)
    rows = reward.prompts(7, 2)
    assert [row["problem"] for row in rows] == [prompt_seed(7, 0), prompt_seed(7, 1)]
    reward._env.reset(seed=rows[0]["problem"])
    right = reward._env.unwrapped.worked_solution()
    replies = [[{"role": "assistant", "content": text}] for text in (right, "#no")]
    assert reward([], replies, [[1, 2, 3], [4]], [rows[0]["problem"]] * 2) == [1.0, 0.0]
    assert reward.num_tokens == 4


def test_the_clock_stands_during_evaluations_and_ends_at_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    now = {"time": 0.0, "tokens": 0}
    accuracies = iter([0.3, 0.5, 0.85])

    def evaluate() -> float:
        now["time"] += 1000.0
        return next(accuracies)

    class Control:
        should_training_stop = False

    monkeypatch.setattr("tppo_rl.bench.peer_trl.time.perf_counter", lambda: now["time"])
    settings = SideSettings(
        options={}, seed=0, target=0.8, limit_tokens=10_000, limit_seconds=100.0, every_tokens=20, num_prompts=1
    )
    clock = Clock(settings, lambda: now["tokens"], evaluate)
    clock.on_train_begin(None, None, Control())
    for _ in range(4):
        assert not Control.should_training_stop
        now["time"] += 2.0
        now["tokens"] += 10
        control = Control()
        clock.on_step_end(None, None, control)
    assert control.should_training_stop
    assert clock.points == [Point(0, 0.0, 0.3), Point(20, 4.0, 0.5), Point(40, 8.0, 0.85)]


def test_held_out_accuracy_repeats_itself_and_leaves_random_numbers_alone() -> None:
    model = load_causal_lm(resolve_model(OPTIONS["policy_model"]), parse_dtype("float32"))
    heldout = HeldOut(OPTIONS, 40)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = heldout.accuracy(model)
    assert torch.rand(1) == expected
    assert 0.1 < first < 0.7
    assert heldout.accuracy(model) == first


@pytest.mark.slow
@pytest.mark.parametrize("side", ["tppo", "trl"])
def test_a_side_runs_in_its_own_process(side: str, tmp_path: Path) -> None:
    options, _ = peers._options(QUICKSTART, ("train_batch_size_per_learner=1024", "max_response_length=64"))
    settings = SideSettings(
        options=options | {"seed": 0},
        seed=0,
        target=0.99,
        limit_tokens=2000,
        limit_seconds=120.0,
        every_tokens=1000,
        num_prompts=32,
        trl={
            "num_prompts": 4,
            "num_generations": 4,
            "minibatch_responses": 16,
            "lr": 2e-4,
            "iterations": 1,
            "generation": "transformers",
            "threads": 1,
        },
    )
    outcome = run_side(side, settings, tmp_path)
    assert run_side(side, settings, tmp_path) == outcome
    assert outcome.tokens >= 2000 or outcome.seconds >= 120.0
    assert len(outcome.points) >= 2
    assert all(0.0 <= point.accuracy < 1.0 for point in outcome.points)
