"""A folder belongs to one run at a time."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.sole_run import sole_run

HOLD = """
import sys, time
from pathlib import Path
from tppo_rl.experiment.sole_run import sole_run
with sole_run(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(1000)
"""


def test_a_second_run_of_a_name_is_refused_until_the_first_is_gone_however_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "a"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    with pytest.raises(OptionError, match=r"runs/a: another process trains this run; wait for it"), sole_run(folder):
        pass
    with sole_run(tmp_path / "runs" / "b"):
        pass
    first.kill()
    first.wait()
    for _ in range(2):
        with sole_run(folder):
            pass
