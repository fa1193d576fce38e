"""The most that each kind of a run's processes has held, for the end of the run."""

from __future__ import annotations

from typing import Any

import torch

from tppo_rl.core.process_memory import process_memory

LEARNER_GPU = "learner, its GPU"
"""What torch has taken of a learner's GPU, the holes of its allocator included."""
_TIMEOUT_S = 10.0
"""An env-runner that is in the midst of something is left out."""


def peak_memory(algorithm: Any) -> dict[str, int]:
    """Returns the largest resident memory so far of the driver, and where they are processes of their own, learners and env-runners.

    Bytes of the process itself: an engine's core in a process of its own, scoring workers, and memory of GPUs of engines are not in it.

    Args:
        algorithm: RLlib's, with the loop of `LanguageModelAlgorithm`.
    """
    options = algorithm.options
    peaks = {"driver": _peak(None)}
    if options.learners.num_learners:
        peaks["learner"] = max(algorithm.loop.learners.ask(_peak))
    if any(on_gpus := algorithm.loop.learners.ask(_peak_of_gpu)):
        peaks[LEARNER_GPU] = max(on_gpus)
    if options.rollout.num_env_runners:
        answers = algorithm.env_runner_group.foreach_env_runner(
            _peak, local_env_runner=False, timeout_seconds=_TIMEOUT_S
        )
        known = [answer for answer in answers if isinstance(answer, int)]
        if known:
            peaks["env-runner"] = max(known)
    return peaks


def _peak(_: Any) -> int:
    return process_memory("VmHWM")


def _peak_of_gpu(_: Any) -> int:
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() and torch.cuda.is_initialized() else 0
