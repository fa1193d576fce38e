"""What the README shows does what it says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 140


def test_it_has_the_commands_of_ci() -> None:
    assert re.search(r"^    make train\b", README, flags=re.MULTILINE)
    assert re.search(r"^    make test\b", README, flags=re.MULTILINE)


@pytest.mark.integration
def test_the_python_example_trains_and_prints_its_result_alone(tmp_path: Path) -> None:
    """Run as a user runs it, with Ray started by nobody else."""
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    run = subprocess.run(
        [sys.executable, "-c", example + "algo.stop()\n"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert re.fullmatch(r"[\d.]+\n", run.stdout)
    assert 0.0 <= float(run.stdout) <= 1.0
    stray = [line for line in run.stderr.splitlines() if re.search(r"\bpid=|\bINFO\b|new API stack|logging\.cc", line)]
    assert stray == []
