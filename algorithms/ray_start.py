"""Ray's start on this machine, without its and its actors' log lines between those of a run."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.process_memory import spare_freed_blocks
from tppo_rl.core.waiting import stage

_STDERR = 2
_LOG_LEVEL = b"Set ray log level from environment variable"
_TOO_SLOW = "timed out during startup"
_KEPT_TASKS = "10000"
"""Calls of actors whose events Ray's head keeps in memory: its own bound of 100,000 is some 200 MiB, reached in hours."""
_LOGGERS = ("ray", "ray.rllib", "ray.tune", "ray._common.deprecation")


def quiet_ray() -> None:
    """Lets Ray and RLlib log errors alone."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Keeps Ray, RLlib and the progress bars of transformers from drowning a run's own lines; warnings and errors of ours still come through."""
    from transformers.utils.logging import disable_progress_bar

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="ray")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    # Bars of models that are loaded would be drawn into the run's own line.
    disable_progress_bar()
    quiet_ray()


@contextmanager
def _without_log_level() -> Iterator[None]:
    """Leaves out the line in which Ray's C++ part says that it has taken over the log level; all others come through.

    Without a log level it would print another line about the actors of every run.
    """
    sys.stderr.flush()
    kept = os.dup(_STDERR)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(kept, _STDERR)
            os.close(kept)
            file.seek(0)
            for line in file:
                if _LOG_LEVEL not in line:
                    os.write(_STDERR, line)


@contextmanager
def _keeping_signal_handlers() -> Iterator[None]:
    """Puts this process's own handlers back: Ray's C++ part takes SIGTERM for a crash, and aborts the process with a stack."""
    here = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)} if here else {}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if callable(handler):
                signal.signal(number, handler)


def start_ray(runtime_env: Mapping[str, Any] | None = None) -> None:
    """Starts Ray on this machine, or joins the cluster that `RAY_ADDRESS` names, unless it runs already.

    Actors, with the libraries in them, write to Ray's log files. Whoever wants their lines on the terminal, such as what a reward
    function prints, starts Ray before, by `ray.init()`.

    Args:
        runtime_env: Ray's environment of all actors; None: nothing.

    Raises:
        OptionError: Ray runs already, and its job has no such environment.
        RunError: Ray did not start in time.
    """
    import ray

    if ray.is_initialized():
        _check_environment(runtime_env or {}, ray.get_runtime_context().runtime_env)
        return
    quiet_ray()
    # Ray's processes get their environment when Ray starts; the one that runs here has read its own.
    spare_freed_blocks()
    os.environ.setdefault("RAY_task_events_max_num_task_in_gcs", _KEPT_TASKS)
    with stage("starting Ray"), _without_log_level(), _keeping_signal_handlers():
        try:
            ray.init(
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                runtime_env=dict(runtime_env) if runtime_env else None,
            )
        except Exception as error:
            # Ray has no class for it.
            if _TOO_SLOW not in str(error):
                raise
            raise RunError(
                f"Ray did not start in time: {error} The load of this machine is {os.getloadavg()[0]:.0f}; try again when it has less to do"
            ) from error


def _check_environment(wanted: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    """Compares the keys alone: Ray replaces folders by addresses of what it has packed."""
    missing = sorted(wanted.keys() - present.keys())
    if missing:
        raise OptionError(
            f"runtime_env={dict(wanted)!r}: Ray runs already, without {', '.join(missing)}; give it to ray.init(runtime_env=…), or leave "
            "the start of Ray to the run"
        )
