"""The same seed gives the same weights: synchronous runs against themselves, each in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from weight_sums import CASES

pytestmark = pytest.mark.integration

SCRIPT = Path(__file__).with_name("weight_sums.py")


def sums(case: str) -> dict[str, Any]:
    run = subprocess.run([sys.executable, SCRIPT, case], check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    (found,) = json.loads(run.stdout.splitlines()[-1]).values()
    return dict(found)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_run_gives_the_same_weights_twice(case: str) -> None:
    first = sums(case)
    assert first == sums(case)
    critic = CASES[case][0] in ("TPPO", "PPO", "VAPO")
    assert set(first) == ({"policy", "critic"} if critic else {"policy"})


@pytest.mark.slow
def test_sums_tell_runs_apart() -> None:
    assert len({sums(case)["policy"] for case in ("TPPO", "PPO", "GRPO")}) == 3
