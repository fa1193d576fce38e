"""`--dry-run` checks a whole run file and says what it would do; nothing is started."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from data_sets import NOT_SHIPPED, SAMPLES
from rich.console import Console

from tppo_rl.cli import main
from tppo_rl.config.run_files import load_run_file, make_experiment
from tppo_rl.experiment.dry_run import print_plan

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


QUICKSTART = ROOT / "configs" / "quickstart.yaml"
ANY_NUMBER = ["num_env_runners", "num_learners", "num_cpus_per_learner", "num_cpus_per_env_runner"]


def placed_run(folder: Path, *settings: str) -> Path:
    """The quickstart as a run file that leaves its shares to a placement."""
    content = yaml.safe_load(QUICKSTART.read_text(encoding="utf-8"))
    (body,) = content.values()
    body["config"] = {key: value for key, value in body["config"].items() if key not in ANY_NUMBER}
    body["config"] |= dict(setting.split("=") for setting in settings)
    path = folder / "placed.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def dry_run(path: Path) -> str:
    run = CliRunner().invoke(main, ["train", "file", str(path), "--dry-run"])
    assert run.exit_code == 0, run.output
    return run.output


def test_what_a_placement_sets_is_printed(tmp_path: Path) -> None:
    output = dry_run(placed_run(tmp_path, "placement=colocated", "gpus=8 x h100", "mode=sync"))
    assert "placement: colocated on 8 GPUs of 74.5 GiB (gpus: 8 x h100)" in output
    rows = re.findall(r"│   ([\w.]+) +│ (\S+) +│", output)
    assert dict(rows[: rows.index(("num_learners", "8")) + 1]) == {
        "dtype": "bfloat16",
        "engine.enable_sleep_mode": "True",
        "engine.gpu_memory_utilization": "0.9",
        "num_env_runners": "8",
        "num_gpus_per_env_runner": "0.6",
        "num_gpus_per_learner": "0.4",
        "num_learners": "8",
    }
    assert "at most, the engine asleep" in " ".join(output.replace("│", " ").split())
    assert re.search(r"env-runners +│ 8 x ", output)


def test_a_placement_on_a_machine_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    path = placed_run(tmp_path, "placement=disaggregated")
    run = CliRunner().invoke(main, ["train", "file", str(path), "--dry-run"])
    assert run.exit_code == 2
    assert "placement='disaggregated': this machine has no GPU" in run.output
    assert "leave placement out, or state the GPUs" in run.output
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    run = CliRunner().invoke(main, ["train", "file", str(path), "--dry-run"])
    assert "RAY_ADDRESS names a cluster, which is not joined now" in run.output


PLACEMENTS = [
    block
    for block in re.findall(
        r"^```yaml\n(.*?)^```",
        (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8"),
        flags=re.DOTALL | re.MULTILINE,
    )
    if "placement:" in block
]


def test_the_docs_show_every_placement() -> None:
    shown = [yaml.safe_load(block)["config"]["placement"] for block in PLACEMENTS]
    assert shown == ["colocated", "disaggregated", "cluster"]


@pytest.mark.parametrize("block", PLACEMENTS)
def test_placements_of_the_docs_have_a_plan(block: str, tmp_path: Path) -> None:
    config = yaml.safe_load(block)["config"]
    gpus = "2 x 8 x h100" if config["placement"] == "cluster" else "8 x h100"
    body = {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"training_iteration": 1},
        "config": {"policy_model": "tppo_rl/arithmetic-chain", "gpus": gpus, **config},
    }
    text = io.StringIO()
    print_plan([make_experiment("shown", body)], tmp_path, Console(file=text, width=150))
    assert f"placement: {config['placement']} on " in text.getvalue()
