"""The check of a device runs on a CPU as far as that goes, and every way in which a step can fail is one line that says so."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from tppo_rl.bench import device_check, device_steps
from tppo_rl.bench.device_check import MARK, STEPS, check_device
from tppo_rl.bench.device_engine import STEPS as ENGINE_STEPS
from tppo_rl.cli import main


@pytest.mark.slow
@pytest.mark.integration
def test_all_steps_pass_on_a_cpu(tmp_path: Path) -> None:
    file = tmp_path / "check.json"
    result = CliRunner().invoke(main, ["bench", "device", "--device", "cpu", "--small", "--json", str(file)])
    reports = {report["step"]: report for report in json.loads(file.read_text(encoding="utf-8"))}
    assert result.exit_code == 0, {step: report["reason"] for step, report in reports.items()}
    assert list(reports) == list(STEPS)
    assert reports["update"]["figures"]["default, float32"] < 1e-3
    assert reports["engine"]["figures"]["difference on the probe"] < 1e-4
    assert reports["engine"]["figures"]["tokens"] > 100


def test_every_step_is_there() -> None:
    assert all(hasattr(device_steps, step) or step in ENGINE_STEPS for step in STEPS)


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("raise MemoryError('no room')", "ended with 1; last lines: .*MemoryError: no room"),
        ("import os; os.kill(os.getpid(), 9)", "ended with -9; nothing was printed"),
        ("print('at work', flush=True); import time; time.sleep(60)", "not done after 3 s; last lines: at work"),
        ("print('no result')", "ended with 0; last lines: no result"),
        (f"""print('{MARK}{{"figures": {{}}, "wrong": ["too far", "too slow"]}}')""", "too far; too slow"),
    ],
)
def test_a_step_that_fails_says_how(program: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    # The step's process finds this module in place of the real one.
    (tmp_path / "tppo_rl" / "bench").mkdir(parents=True)
    for folder in ("tppo_rl", "tppo_rl/bench"):
        (tmp_path / folder / "__init__.py").touch()
    (tmp_path / "tppo_rl" / "bench" / "device_steps.py").write_text(program, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(device_check.STEPS, "machine", 3.0)
    (report,) = check_device("cpu", ["machine"], small=True)
    assert not report.passed
    assert re.search(reason, report.reason), report.reason


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_no_pass() -> None:
    (report,) = check_device("cuda", ["machine"], small=True)
    assert not report.passed
    assert "sees no CUDA device: install '.[gpu]'" in report.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--device", "tpu"], "device='tpu': use 'cpu' or 'cuda'"),
        (["--step", "sped"], "step='sped' is unknown: use some of machine, update"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main, ["bench", "device", *arguments])
    assert result.exit_code == 2
    assert message in result.stderr
