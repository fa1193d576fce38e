"""The most that each kind of a run's processes has held, for the end of the run."""

from __future__ import annotations

from typing import Any

from tppo_rl.core.process_memory import process_memory

_TIMEOUT_S = 10.0
"""An env-runner that is in the midst of something is left out."""


def peak_memory(algorithm: Any) -> dict[str, int]:
    """Returns the largest resident memory so far of the driver, and where they are processes of their own, learners and env-runners.

    Bytes of the process itself: an engine's core in a process of its own, scoring workers, and memory of a GPU are not in it.

    Args:
        algorithm: RLlib's, with the loop of `LanguageModelAlgorithm`.
    """
    options = algorithm.options
    peaks = {"driver": _peak(None)}
    if options.learners.num_learners:
        peaks["learner"] = max(algorithm.loop.learners.ask(_peak))
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
