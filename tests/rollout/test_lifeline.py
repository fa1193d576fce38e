"""A process that is killed takes along those that it has started."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

PROGRAM = """
import multiprocessing, os, sys, time
from tppo_rl.rollout.lifeline import die_with_starter

def child():
    {call}
    print(os.getpid(), flush=True)
    while True:
        pass

if __name__ == "__main__":
    process = multiprocessing.get_context("spawn").Process(target=child)
    process.start()
    process.join()
"""


@pytest.mark.parametrize("held", [True, False])
def test_a_process_ends_with_the_one_that_has_started_it(tmp_path: Path, held: bool) -> None:
    program = tmp_path / "starts.py"
    program.write_text(PROGRAM.format(call="die_with_starter()" if held else "pass"))
    starter = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = psutil.Process(int(starter.stdout.readline()))
    try:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        if held:
            child.wait(timeout=60)
        else:
            time.sleep(0.5)
            assert child.is_running()
    finally:
        if child.is_running():
            child.kill()
