"""`tppo-rl doctor` finds what is amiss, and says what to do."""

from __future__ import annotations

import shutil
import socket
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tppo_rl.bench import doctor
from tppo_rl.bench.device_check import StepReport
from tppo_rl.bench.doctor import Finding, examine
from tppo_rl.cli import main

_Usage = namedtuple("_Usage", "total used free")


def findings(**options: Any) -> dict[str, Finding]:
    return {finding.subject: finding for finding in examine(**({"compute": False} | options))}


def test_this_machine_is_fit_for_the_tests_that_run_on_it() -> None:
    found = findings()
    assert [finding for finding in found.values() if finding.verdict == "wrong"] == []
    assert found["torch"].seen.startswith("2.")
    assert all(finding.remedy for finding in found.values() if finding.verdict == "look")


@pytest.mark.parametrize(
    ("subject", "change", "seen", "remedy"),
    [
        ("torch", ("_version", lambda name: "1.0" if name == "torch" else "9"), "1.0", "install torch=="),
        ("vLLM", ("_version", lambda name: None if "vllm" in name else "2.13.0"), "missing", "make setup-gpu"),
        ("pyarrow", ("_version", lambda name: None if name == "pyarrow" else "2.13.0"), "missing", "make setup"),
    ],
)
def test_packages_that_will_not_do(
    subject: str, change: tuple[str, Any], seen: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, *change)
    finding = findings()[subject]
    assert finding.verdict == "wrong"
    assert finding.seen == seen
    assert remedy in finding.remedy


def test_a_small_shared_memory_and_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        shutil, "disk_usage", lambda folder: _Usage(2**26, 0, 2**26 if str(folder) == "/dev/shm" else 2**40)
    )
    found = findings()
    assert found["shared memory"].verdict == "look"
    assert "--shm-size" in found["shared memory"].remedy
    assert found["disk"].verdict == "fine"


def test_a_cluster_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    found = findings()["Ray"]
    assert found.verdict == "wrong"
    assert "unset RAY_ADDRESS" in found.remedy


def test_what_computes_wrongly_is_named_and_is_the_exit_status(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    reports = {
        "update": StepReport("update", True, 3.0),
        "engine": StepReport("engine", False, 3.0, reason="it is off by 1"),
    }
    monkeypatch.setattr(doctor, "check_device", lambda device, steps, small: [reports[steps[0]]])
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "wrong   engine on cpu     it is off by 1" in result.stdout
    assert "-> tppo-rl bench device --device cpu --step engine" in result.stdout
    assert "error: 1 finding is wrong" in result.stderr
    assert CliRunner().invoke(main, ["doctor", "--quick"]).exit_code == 0
