"""Whether Ray has what a run's actors ask for: an actor that fits nowhere is waited for without end, and without a word."""

from __future__ import annotations

import logging
import os
import time

import ray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.util import get_current_placement_group

from tppo_rl.algorithms.ray_start import start_ray
from tppo_rl.algorithms.rllib_internals import ray_started_here
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.core.waiting import stop_here

_logger = logging.getLogger(__name__)

_LOOK_S = 0.2
_ROUNDING = 1e-3
"""Ray counts in ten-thousandths."""


def check_resources(config: AlgorithmConfig) -> None:
    """Compares CPUs and GPUs of env-runners and learners with those of all of Ray's nodes.

    Nothing is checked inside of a placement group: whoever made it (Tune) has the resources already.

    Args:
        config: Of the run; Ray is started if it was not.

    Raises:
        RunError: this process started Ray, and other actors hold what the run needs, also after `env_runner_timeout_s`.
        OptionError: this process started Ray on this machine alone, and it has too few. Where Ray was there before, nodes may
            still join, so it is a warning. Or a learner in this process wants a GPU beside those of env-runners. Or an env-runner or a
            learner in this process wants more CPUs than the machine has.
    """
    _refuse_more_threads_than_cpus(config)
    start_ray(config.options.run.runtime_env)
    if get_current_placement_group() is not None:
        return
    _refuse_an_uncounted_gpu(config)
    available = ray.cluster_resources()
    for kind in ("CPU", "GPU"):
        key = f"num_{kind.lower()}s_per"
        shares = {
            ("num_env_runners", f"{key}_env_runner"): getattr(config, f"{key}_env_runner"),
            ("num_learners", f"{key}_learner"): _of_learner(config, kind),
        }
        needed = sum(getattr(config, number) * share for (number, _), share in shares.items())
        if needed <= available.get(kind, 0.0):
            if ray_started_here():
                _wait_until_free(kind, needed, config.env_runner_timeout_s)
            continue
        terms = " + ".join(
            f"{number}={getattr(config, number)} x {each}={share:g}" for (number, each), share in shares.items()
        )
        message = (
            f"{terms} is {needed:g} {kind} in all, and Ray has {available.get(kind, 0.0):g}; lower one of these options, or start "
            "Ray with more"
        )
        if ray_started_here():
            raise OptionError(message)
        _logger.warning("%s. The run waits for nodes with them, at most start_timeout_s.", message)


def _wait_until_free(kind: str, needed: float, timeout_s: float) -> None:
    """Waits for what other actors hold: one that has just been stopped gives it back a moment later."""
    deadline = time.monotonic() + timeout_s
    while (free := ray.available_resources().get(kind, 0.0)) < needed - _ROUNDING:
        if time.monotonic() > deadline:
            raise RunError(
                f"the run needs {needed:g} {kind}, and Ray has {free:g} of {ray.cluster_resources().get(kind, 0.0):g} free after "
                f"{timeout_s:g} s (env_runner_timeout_s); other actors of this process's Ray hold the rest, such as those of an algorithm "
                "that was not stopped: stop() it, or ray.shutdown() before the next one"
            )
        stop_here()
        time.sleep(_LOOK_S)


def _refuse_more_threads_than_cpus(config: AlgorithmConfig) -> None:
    """What is in this process takes as many threads as it has CPUs, and Ray does not count them."""
    there = os.cpu_count() or 1
    for number, who in (("num_env_runners", "env_runner"), ("num_learners", "learner")):
        share = getattr(config, f"num_cpus_per_{who}")
        if not getattr(config, number) and share != "auto" and share > there:
            raise OptionError(
                f"num_cpus_per_{who}={share:g}: with {number}=0 it is in this process, with so many threads, and the machine has {there} "
                f"CPUs; set it to {there} or less"
            )


def _refuse_an_uncounted_gpu(config: AlgorithmConfig) -> None:
    """This process is no actor, so Ray would give the GPU of a learner in it to an env-runner as well."""
    if config.num_gpus_per_learner and not config.num_learners and config.num_gpus_per_env_runner:
        raise OptionError(
            f"num_gpus_per_learner={config.num_gpus_per_learner}: with num_learners=0 the learner is in the main process, where Ray "
            f"does not count its GPU and gives it to an env-runner too (num_gpus_per_env_runner={config.num_gpus_per_env_runner}); set "
            "num_learners to 1"
        )


def _of_learner(config: AlgorithmConfig, kind: str) -> float:
    if kind == "CPU" and config.num_cpus_per_learner == "auto":
        return 0.0 if config.num_gpus_per_learner else 1.0
    return float(config.num_gpus_per_learner if kind == "GPU" else config.num_cpus_per_learner)
