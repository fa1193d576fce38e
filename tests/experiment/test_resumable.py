"""Checkpoints that a run cannot go on from are refused before anything is started, with all that is wrong and a way out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.algorithms.checkpoint_contents import checkpoint_contents
from tppo_rl.cli import main
from tppo_rl.core.checkpoint_files import check_every_file, write_checkpoint
from tppo_rl.core.errors import OptionError
from tppo_rl.core.state_files import MANIFEST
from tppo_rl.experiment import run as run_module
from tppo_rl.experiment.checkpoints import checkpoint_path

CONFIG: dict[str, Any] = {"policy_model": "tppo_rl/arithmetic-chain", "window_length": 12, "max_response_length": 64}
ENV = "tppo_rl/ArithmeticChain-v0"


class TPPO:
    """What `checkpoint_contents` asks of an algorithm."""

    def __init__(self) -> None:
        self.config = TPPOConfig().update_from_dict(CONFIG | {"env": ENV})
        self.options = self.config.options


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    return checkpoint_contents(TPPO())


@pytest.fixture
def run_file(tmp_path: Path, facts: dict[str, Any]) -> Path:
    """A run file beside a folder with the checkpoints of two iterations of its run."""
    body = {"run": "TPPO", "env": ENV, "stop": {"training_iteration": 9}, "config": CONFIG}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"small": body}), encoding="utf-8")
    for iteration in (1, 2):
        place = checkpoint_path(tmp_path / "my runs" / "small", iteration)
        write_checkpoint(place, {"number": iteration, "text": "x" * 40}, facts | {"iteration": iteration})
        (place / "more.bin").write_bytes(b"\0" * 50)
        write_checkpoint(place, {"number": iteration, "text": "x" * 40}, facts | {"iteration": iteration})
    return path


def break_files(folder: Path) -> None:
    """One is cut, one is changed."""
    (folder / "more.bin").write_bytes(b"\0" * 9)
    data = (folder / "state.json").read_bytes()
    (folder / "state.json").write_bytes(data.replace(b"xxxx", b"xxyx", 1))


BROKEN = (
    "more.bin has 9 bytes, and 50 were written; state.json is not what was written: its checksum differs; {whole} is whole: name "
    "that, or move this one away to go on from there"
)


def newest(run_file: Path) -> Path:
    return checkpoint_path(run_file.parent / "my runs" / "small", 2)


def test_all_damaged_files_are_named_and_a_whole_checkpoint_beside(run_file: Path) -> None:
    folder = newest(run_file)
    check_every_file(folder)
    break_files(folder)
    whole = checkpoint_path(run_file.parent / "my runs" / "small", 1)
    run = CliRunner().invoke(main, ["doctor", str(folder)])
    assert run.exit_code == 2
    assert BROKEN.format(whole=whole) in run.output
    (whole / MANIFEST).unlink()
    with pytest.raises(OptionError, match=r"its checksum differs; there is no whole one beside it$"):
        check_every_file(folder)


@pytest.mark.parametrize("uri", [False, True])
def test_a_dry_run_checks_the_checkpoint(run_file: Path, facts: dict[str, Any], uri: bool) -> None:
    results = str(run_file.parent / "my runs")
    command = ["train", "file", str(run_file), "--resume", "--dry-run", "--results"]
    command.append(f"file://{results}" if uri else results)
    run = CliRunner().invoke(main, command)
    assert run.exit_code == 0, run.output
    assert f"would go on from {newest(run_file)}" in run.output
    write_checkpoint(checkpoint_path(Path(results) / "small", 3), {}, facts | {"algorithm": "GRPO", "iteration": 3})
    assert "was saved by GRPO, and this run is TPPO" in CliRunner().invoke(main, command).output
    (checkpoint_path(Path(results) / "small", 3) / MANIFEST).unlink()
    break_files(newest(run_file))
    run = CliRunner().invoke(main, command)
    assert run.exit_code == 2
    assert "state.json is not what was written" in run.output
    run = CliRunner().invoke(main, [*command[:-1], str(run_file.parent / "nothing")])
    assert run.exit_code == 2
    assert "holds no checkpoint" in run.output or "no run's folder that holds one" in run.output


def test_checksums_are_compared_before_an_engine_is_started(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(*arguments: Any) -> None:
        raise AssertionError("started")

    monkeypatch.setattr(run_module, "build_algorithm", build)
    break_files(newest(run_file))
    command = ["train", "file", str(run_file), "--resume", "--results", str(run_file.parent / "my runs")]
    run = CliRunner().invoke(main, command)
    assert run.exit_code == 2, run.output
    assert "state.json is not what was written" in run.output


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (["train", "--run", "TPPO", "--env", ENV, "--config", f"{CONFIG}", "--stop", "{training_iteration: 1}", "--results"], "--results"),
        (["doctor"], "checkpoint"),
        (["rollouts"], "RUN"),
    ],
)  # fmt: skip
def test_a_uri_of_no_file_system_is_one_error(command: list[str], key: str) -> None:
    run = CliRunner().invoke(main, [*command, "s4://bucket/run"])
    assert run.exit_code == 2, run.output
    assert f"error: {key}='s4://bucket/run': pyarrow makes no file system of it" in run.output
