"""`--dry-run` checks a whole run file and says what it would do; nothing is started."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from data_sets import NOT_SHIPPED, SAMPLES

from tppo_rl.cli import main
from tppo_rl.config.run_files import load_run_file

ROOT = Path(__file__).parents[2]
SHIPPED = sorted([*ROOT.glob("configs/*.yaml"), *ROOT.glob("examples/*.yaml")])


@pytest.mark.parametrize("path", SHIPPED, ids=[path.name for path in SHIPPED])
def test_every_shipped_run_file_has_a_plan(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    overrides = NOT_SHIPPED.get(path.name, [])
    others = [word for override in overrides for word in ("--set", override)]
    run = CliRunner().invoke(main, ["train", "file", str(path), "--dry-run", "--results", str(tmp_path), *others])
    assert run.exit_code == 0, run.output
    for experiment in load_run_file(path, overrides):
        assert experiment.name in run.output
        assert f"({experiment.spec.name})" in run.output
        if experiment.is_sweep:
            assert f"{experiment.num_trials}, scheduler" in run.output
    assert "nothing was started" in run.output
    assert not any(tmp_path.iterdir())


def test_what_differs_from_the_defaults_is_listed_and_nothing_else() -> None:
    path = ROOT / "configs" / "quickstart.yaml"
    run = CliRunner().invoke(main, ["train", "file", str(path), "--dry-run", "--set", "gamma=0.5"])
    changed = run.output[run.output.index("changed options") :]
    assert "0.5 (default 1.0)" in changed
    assert "epsilon_low" not in changed
    assert "max_staleness" not in changed


def test_a_data_set_says_how_many_questions_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(SAMPLES)
    data = "{source: gsm8k.jsonl, preset: gsm8k, heldout: {source: mawps.jsonl, preset: mawps}}"
    config = f"{{policy_model: tppo_rl/arithmetic-chain, env_config: {data}, evaluation_duration: 13}}"
    arguments = f"train --run TPPO --env tppo_rl/Dataset-v0 --config '{config}' --stop '{{training_iteration: 3}}'"
    run = CliRunner().invoke(main, shlex.split(f"{arguments} --dry-run"))
    assert run.exit_code == 0, run.output
    assert "13 to train, 12 held out" in run.output
    assert str(SAMPLES / "mawps.jsonl") in "".join(run.output.replace("│", "").split())


def test_a_mistake_ends_a_dry_run_as_it_would_the_run() -> None:
    path = ROOT / "configs" / "quickstart.yaml"
    run = CliRunner().invoke(main, ["train", "file", str(path), "--dry-run", "--set", "windw_length=16"])
    assert run.exit_code == 2
    assert "windw_length=16: unknown option, did you mean window_length" in run.output


def test_options_on_the_command_line_have_a_plan_too() -> None:
    config = "{policy_model: tppo_rl/arithmetic-chain, lr: 1e-4}"
    arguments = (
        f"train --run GRPO --env tppo_rl/ArithmeticChain-v0 --config '{config}' --stop '{{training_iteration: 3}}'"
    )
    run = CliRunner().invoke(main, shlex.split(f"{arguments} --dry-run"))
    assert run.exit_code == 0, run.output
    assert "(GRPO)" in run.output
    assert "training_iteration >= 3" in run.output
