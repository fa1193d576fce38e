"""A recorded run made again, update by update, and compared with what it was: `tppo-rl replay`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tppo_rl.config.options import Options, algorithm_spec
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.rollout.event_log import read_events


def replay(run: Path, folder: Path, iterations: int | None) -> Iterator[tuple[int, bool]]:
    """Makes a run again and gives, for each iteration, its number and whether the weights are equal to the last bit.

    Args:
        run: Folder of a run with `record_events`.
        folder: For the results of the replay.
        iterations: Number of iterations; None: all.

    Raises:
        OptionError: the run has recorded no events, or has fewer iterations before it was resumed.
        RunError: the events end before the iterations, or an env-runner was lost in them.
    """
    from tppo_rl.algorithms.ray_start import quiet_libraries, start_ray
    from tppo_rl.algorithms.rllib_classes import rllib_classes

    facts, lines = read_events(run)
    count = len(lines) if iterations is None else iterations
    if count > len(lines):
        raise OptionError(
            f"--iterations={iterations}: {run} has recorded {len(lines)} iterations, up to where it was resumed if it was"
        )
    quiet_libraries()
    options = Options.of(**facts["options"])
    start_ray(options.run.runtime_env)
    algorithm_class, config_class = rllib_classes(algorithm_spec(facts["algorithm"]))
    changes: dict[str, Any] = {"record_events": False, "replay_of": str(run.resolve()), "results_folder": str(folder)}
    config = config_class().update_from_dict(facts["options"] | facts["rllib"] | changes)
    algorithm = algorithm_class(config=config)
    try:
        for line in lines[:count]:
            algorithm.train()
            yield line["iteration"], algorithm.weights_checksum == line["weights"]
    finally:
        algorithm.stop()


def first_difference(found: Iterator[tuple[int, bool]]) -> tuple[int, int | None]:
    """Returns how many iterations were made again, and the first one whose weights differ; None if none does."""
    made = 0
    for number, equal in found:
        made = number
        if not equal:
            return made, number
    return made, None


def report(made: int, different: int | None) -> str:
    """Says what a replay has found.

    Raises:
        RunError: the weights differ.
    """
    if different is None:
        return f"{made} updates made again; the weights are equal to the last bit after each"
    raise RunError(
        f"the weights differ after update {different}, and were equal before: look there (another machine, version or library of linear "
        "layers rounds otherwise)"
    )
