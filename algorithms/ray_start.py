"""Ray's start on this machine, without its and its actors' log lines between those of a run."""

from __future__ import annotations

import logging
import os
import warnings

from tppo_rl.core.waiting import stage

_LOGGERS = ("ray", "ray.rllib", "ray.tune", "ray._common.deprecation")


def quiet_ray() -> None:
    """Lets Ray and RLlib log errors alone."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    for name in _LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def quiet_libraries() -> None:
    """Keeps Ray and RLlib from drowning a run's own lines; warnings and errors of ours still come through."""
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module="ray")
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    quiet_ray()


def start_ray() -> None:
    """Starts Ray on this machine, or joins the cluster that `RAY_ADDRESS` names, unless it runs already.

    Actors write to Ray's log files. Whoever wants their lines on the terminal starts Ray before, by `ray.init()`.
    """
    import ray

    if not ray.is_initialized():
        quiet_ray()
        with stage("starting Ray"):
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
