"""Ray's environment of all actors: what a run asks for is there, or it is refused."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import ray

from tppo_rl.algorithms.ray_start import _check_environment, start_ray
from tppo_rl.core.errors import OptionError, RunError


def test_what_a_running_ray_does_not_have_is_refused() -> None:
    _check_environment({}, {})
    _check_environment({"working_dir": "."}, {"working_dir": "gcs://packed.zip", "env_vars": {}})
    message = (
        r"^runtime_env=\{'py_modules': \['rewards'\]\}: Ray runs already, without py_modules; give it to ray\.init"
    )
    with pytest.raises(OptionError, match=message):
        _check_environment({"py_modules": ["rewards"]}, {"working_dir": "."})


@pytest.mark.integration
def test_signals_are_still_this_process_s_own_where_ray_runs() -> None:
    """A scheduler that takes a job away sends SIGTERM: the run saves, and ends."""
    program = """
import os, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
from tppo_rl.algorithms.ray_start import start_ray
start_ray()
os.kill(os.getpid(), signal.SIGTERM)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120)
    assert (run.returncode, run.stderr) == (7, "")


def test_a_ray_that_does_not_start_in_time_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because of much.")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", slow)
    with pytest.raises(
        RunError, match=r"^Ray did not start in time: The current node .* try again when it has less to do$"
    ):
        start_ray()


@pytest.mark.parametrize("of_the_user", [None, "50"])
def test_ray_keeps_few_of_the_calls_that_were_made(monkeypatch: pytest.MonkeyPatch, of_the_user: str | None) -> None:
    name = "RAY_task_events_max_num_task_in_gcs"
    if of_the_user is None:
        # What is set afterwards is undone with it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    else:
        monkeypatch.setenv(name, of_the_user)
    seen: list[str] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: seen.append(os.environ[name]))
    start_ray()
    assert seen == [of_the_user or "10000"]
