"""Runs whose processes are killed, and the verdict on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tppo_rl.bench.chaos import VICTIMS, chaos, chaos_run
from tppo_rl.bench.chaos_outcome import Kill, Outcome, faults, rows_of
from tppo_rl.bench.commands import chaos as chaos_command
from tppo_rl.cli import main


def test_the_command_offers_every_victim() -> None:
    (what,) = [option for option in chaos_command.params if option.name == "what"]
    assert set(what.type.choices) == set(VICTIMS)  # type: ignore[attr-defined]


def outcome(accuracy: float, **values: Any) -> Outcome:
    return Outcome(**({"ended": True, "summary": {"heldout_accuracy_after": accuracy}} | values))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"ended": False}, "1 runs did not end"),
        ({"twice": 2}, "2 windows were trained more than once"),
        ({"broken": 3}, "3 windows do not follow"),
        ({"missing_prompts": 4}, "4 prompts are lost"),
        ({"identity": -5}, "5 tokens are unaccounted for"),
    ],
)
def test_each_kind_of_loss_is_a_fault(values: dict[str, Any], words: str) -> None:
    assert faults([outcome(0.5)], []) == []
    (line,) = faults([outcome(0.5), outcome(0.5, **values)], [])
    assert line.startswith(words)


def test_tokens_that_cancel_out_over_runs_are_both_faults() -> None:
    (line,) = faults([outcome(0.5, identity=7), outcome(0.5, identity=-7)], [])
    assert line.startswith("14 tokens")


def test_an_accuracy_is_compared_by_its_standard_error() -> None:
    ours, near, far = ([outcome(mean - 0.01), outcome(mean + 0.01)] for mean in (0.5, 0.52, 0.54))
    # The standard error of each mean is 0.01, and that of a difference 0.014.
    assert faults(ours, near) == []
    (line,) = faults(ours, far)
    assert "-0.040" in line
    assert "0.014" in line
    assert faults(ours, far[:1]) == []


def test_the_table_says_how_long_each_kind_of_victim_took() -> None:
    kills = [Kill("engine", 3, 2.0), Kill("engine", 4, 9.0), Kill("driver", 5, None, 1.5)]
    rows = rows_of([outcome(0.5, kills=kills)], [outcome(0.6)])
    assert ("2", "kills of the engine") in rows
    assert any(value == "2.0 … 5.5 … 9.0" for value, _ in rows)
    assert ("-", "  seconds to the end of the next iteration: least, median, most") in rows
    assert ("0.600", "that of 1 undisturbed runs") in rows


def test_runs_go_into_a_new_folder(tmp_path: Path) -> None:
    (tmp_path / "something").touch()
    result = CliRunner().invoke(main, ["bench", "chaos", "--results", str(tmp_path)])
    assert result.exit_code == 2
    assert "is not empty: give a new folder" in result.output


@pytest.mark.parametrize("command", ["chaos", "soak"])
def test_runs_stay_on_this_machine(command: str) -> None:
    result = CliRunner().invoke(main, ["bench", command, "--results", "s3://bucket/runs"])
    assert result.exit_code == 2
    assert "give a folder of this machine" in result.output


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["engine", "learner", "driver", "save"])
def test_a_run_goes_on_after_each_kind_of_kill(victim: str, tmp_path: Path) -> None:
    config = chaos_run(12_000, [victim])
    found = chaos(tmp_path, config, kills=2, every_s=2.0, what=[victim], seed=0)
    assert [kill.what for kill in found.kills] == [victim] * 2
    assert all(kill.recovery_s is not None for kill in found.kills)
    assert found.windows > 500
    assert faults([found], []) == []
