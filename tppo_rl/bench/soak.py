"""A run for a long time, and what grows in it: `tppo-rl bench soak`.

The run is `tppo-rl train file` in a process of its own. Its processes are looked at from outside, every few seconds: memory that is theirs
alone, open files, threads, and what lies in shared memory. What is there after the first third must not rise:

    slope      least squares over the means of blocks, whose noise is nearly independent
    interval   Student's t over the blocks; something grows where its lower end is above what is allowed
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import yaml
from scipy import stats

from tppo_rl.core.errors import RunError

NAME = "soak"
_EVERY_S = 5.0
_GRACE_S = 900.0
"""For set-up, the last evaluation and the end of a run, after which it counts as hung."""
_WARM_UP = 1 / 3
"""Share of the samples that is left out: caches fill, and the allocator finds its size."""
_BLOCKS = 8
_MOSTLY = 0.9
"""Share of the samples in which a quantity must be seen, to be of the run and not of its start or end."""
_MIB = 2**20
_ROLES = {
    "ray::VLLMEnvRunner": "env-runner",
    "ray::_WrappedExecutable": "learner",
    "VLLM::": "engine core",
    "ray::": "other actors",
}
"""Beginnings of titles; the process that was started is the driver, and Ray's own are called by their programs."""
_ALLOWED = {"private memory": 20.0, "open files": 2.0, "threads": 2.0, "shared memory": 20.0}
"""Rise in an hour, in the unit of the quantity, below which nothing is said to grow."""
_UNITS = {"private memory": "MiB", "open files": "files", "threads": "threads", "shared memory": "MiB"}


class Slope(NamedTuple):
    """How a quantity changes."""

    quantity: str
    unit: str
    level: float
    """Mean after the warm-up."""
    per_hour: float
    low: float
    """Of the 95 % interval."""
    high: float

    @property
    def grows(self) -> bool:
        """Whether it surely rises by more than is allowed."""
        return self.low > _ALLOWED[self.quantity.partition(", ")[0]]


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment."""

    seconds: float
    values: Mapping[str, float]
    """By quantity, of all processes of a role together."""


def soak_run(seconds: float) -> dict[str, Any]:
    """Returns a small asynchronous experiment that lasts so long, with checkpoints and evaluations."""
    return {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"time_total_s": seconds},
        "checkpoint_config": {"checkpoint_frequency": 20, "num_to_keep": 2},
        "config": {
            "policy_model": "tppo_rl/arithmetic-chain",
            "num_env_runners": 1,
            "num_envs_per_env_runner": 16,
            "window_length": 16,
            "max_response_length": 128,
            "max_prompt_length": 128,
            "train_batch_size_per_learner": 512,
            "lr": 1e-5,
            "critic_lr": 1e-4,
            "evaluation_interval": 50,
            "evaluation_duration": 32,
        },
    }


def soak(folder: Path, *, minutes: float) -> list[Slope]:
    """Runs for so many minutes and returns how its quantities change.

    Args:
        folder: For the run; must not hold one.
        minutes: Of the run, set-up not counted.

    Raises:
        RunError: the run failed, or was too short to say anything.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({NAME: soak_run(60 * minutes)}), encoding="utf-8")
    command = [sys.executable, "-m", "tppo_rl", "train", "file", str(file), "--results", str(folder)]
    samples = []
    latest = time.monotonic() + 60 * minutes + _GRACE_S
    with (folder / "output.txt").open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        try:
            while process.poll() is None:
                if (folder / NAME / "result.json").is_file():
                    samples.append(Sample(time.monotonic(), _look(process.pid)))
                if time.monotonic() > latest:
                    raise RunError(
                        f"the run did not end within {_GRACE_S:g} s of its time; see {folder / 'output.txt'}"
                    )
                time.sleep(_EVERY_S)
        finally:
            process.kill()
    if process.returncode:
        raise RunError(f"the run ended with status {process.returncode}; see {folder / 'output.txt'}")
    return slopes(samples)


def slopes(samples: Sequence[Sample]) -> list[Slope]:
    """Returns how each quantity changes after the warm-up.

    Raises:
        RunError: there are too few samples.
    """
    # At the end processes leave, one after another.
    kept = samples[int(_WARM_UP * len(samples)) : -2]
    if len(kept) < 2 * _BLOCKS:
        raise RunError(
            f"{len(kept)} samples after the warm-up, and {2 * _BLOCKS} are the least: let the run last longer"
        )
    seen = Counter(name for sample in kept for name in sample.values)
    return [_slope_of(name, kept) for name in sorted(seen) if seen[name] >= _MOSTLY * len(kept)]


def _slope_of(name: str, samples: Sequence[Sample]) -> Slope:
    """Takes the samples that have the quantity: a process that changes its title just then is not known in one."""
    having = [sample for sample in samples if name in sample.values]
    hours = np.array([sample.seconds for sample in having]) / 3600
    return _slope(name, hours, np.array([sample.values[name] for sample in having]))


def _slope(name: str, hours: np.ndarray, values: np.ndarray) -> Slope:
    times = np.array([block.mean() for block in np.array_split(hours, _BLOCKS)])
    means = np.array([block.mean() for block in np.array_split(values, _BLOCKS)])
    if np.ptp(means) == 0:
        return Slope(name, _UNITS[name.partition(", ")[0]], float(values.mean()), 0.0, 0.0, 0.0)
    fit = stats.linregress(times, means)
    half = float(stats.t.ppf(0.975, _BLOCKS - 2) * fit.stderr)
    slope = float(fit.slope)
    return Slope(name, _UNITS[name.partition(", ")[0]], float(values.mean()), slope, slope - half, slope + half)


def _look(driver: int) -> dict[str, float]:
    """Sums over the processes of each role."""
    values: defaultdict[str, float] = defaultdict(float)
    try:
        family = [psutil.Process(driver), *psutil.Process(driver).children(recursive=True)]
    except psutil.Error:
        family = []  # It has ended since it was asked.
    for process in family:
        try:
            with process.oneshot():
                role = "driver" if process.pid == driver else _role(process)
                memory = process.memory_info()
                values[f"private memory, {role}"] += (memory.rss - memory.shared) / _MIB
                values[f"open files, {role}"] += process.num_fds()
                values[f"threads, {role}"] += process.num_threads()
        except psutil.Error:
            continue
    values["shared memory, all"] = psutil.disk_usage("/dev/shm").used / _MIB
    return dict(values)


def _role(process: psutil.Process) -> str:
    title = (process.cmdline() or [process.name()])[0]
    return next((role for beginning, role in _ROLES.items() if title.startswith(beginning)), process.name())
