"""A run whose processes are killed at random moments: `tppo-rl bench chaos`.

Everything is the product's own: the run is `tppo-rl train file` in a process of its own, one that has ended is followed by `--resume`, and
kills are SIGKILL, or SIGSTOP for what is to hang.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml

from tppo_rl.bench.chaos_outcome import Kill, Outcome, judge
from tppo_rl.experiment.checkpoints import CHECKPOINTS, PARTIAL, find_newest_checkpoint

NAME = "chaos"
VICTIMS = {
    "env-runner": "ray::VLLMEnvRunner",
    "hang": "ray::VLLMEnvRunner",
    "engine": "VLLM::EngineCore",
    "learner": "ray::_WrappedExecutable",
    "driver": "",
    "save": "",
}
"""Beginning of a process's title by what may be killed; a `save` is the driver in the midst of one, a `hang` is stopped, not killed."""
_HANG_S = 20.0
"""Time without a sign of life after which a run in which env-runners hang starts them anew."""
_START_S = 90.0
"""Time that an env-runner of such a run may take to start; the next hang may meet it there."""
_OF_DRIVER = ("driver", "save")
_POLL_S = 0.2
_LONGEST_S = 600.0
"""Time without a new iteration after which a run counts as hung."""
_SAVE_S = 0.1
"""A kill in the midst of a save comes at most so long after it has begun."""

_Process = subprocess.Popen[bytes]


def chaos_run(tokens: int, victims: Collection[str]) -> dict[str, Any]:
    """Returns an experiment on the long-tailed sums, asynchronous, whose responses span many windows.

    Args:
        tokens: Sampled tokens of the run.
        victims: Keys of `VICTIMS`; learner and engine get processes of their own where they are among them.
    """
    config: dict[str, Any] = {
        "env_config": {"max_operands": 12, "tail_exponent": 4.0, "long_share": 1.0},
        "policy_model": "tppo_rl/arithmetic-chain-long-tail",
        "num_env_runners": 1,
        "num_envs_per_env_runner": 16,
        "window_length": 8,
        "max_response_length": 256,
        "max_prompt_length": 128,
        "train_batch_size_per_learner": 512,
        "lr": 1e-4,
        "critic_lr": 1e-3,
        "evaluation_interval": None,
        "rollout_log_fragments": 1_000_000,
    }
    if "learner" in victims:
        config["num_learners"] = 1
    if "hang" in victims:
        config |= {"heartbeat_timeout_s": _HANG_S, "env_runner_timeout_s": _START_S}
    if "engine" in victims:
        config["engine"] = {"multiprocessing": True}
    return {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"num_env_steps_sampled_lifetime": tokens},
        "checkpoint_config": {"checkpoint_frequency": 2, "num_to_keep": 2},
        "config": config,
    }


def chaos(
    folder: Path, config: Mapping[str, Any], *, kills: int, every_s: float, what: Sequence[str], seed: int
) -> Outcome:
    """Runs an experiment and kills its processes.

    Args:
        folder: For the run; must not hold one.
        config: An experiment as in a run file; it should save checkpoints often and keep all fragments.
        kills: Number of kills; the run then ends undisturbed.
        every_s: Mean time between kills.
        what: Keys of `VICTIMS`.
        seed: Of the run, of moments and victims.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file, run = folder / "run.yaml", folder / NAME
    experiment = {**config, "config": {**config["config"], "seed": seed}}
    file.write_text(yaml.safe_dump({NAME: experiment}), encoding="utf-8")
    generator = random.Random(seed)
    outcome, started = Outcome(), time.monotonic()

    began_at: Path | None = None

    def start() -> _Process:
        nonlocal began_at
        began_at = find_newest_checkpoint(run)
        return _start(file, folder, resume=began_at is not None)

    process = start()
    try:
        while not outcome.ended:
            left = kills - len(outcome.kills)
            moment = time.monotonic() + generator.uniform(0.2, 1.8) * every_s if left > 0 else None
            code = _wait(process, run, moment)
            if code is not None:
                outcome.ended = code == 0
                if not outcome.kills or outcome.kills[-1].recovery_s is None:
                    break
                # It ended of the last kill after all: one more iteration was on its way.
                if not outcome.ended:
                    size, since = _size_of_results(run), time.monotonic()
                    process, outcome.kills[-1].recovery_s = _recovered(process, start, run, size, since)
                continue
            victim, unfinished = generator.choice(what), _unfinished_saves(run)
            if victim == "save":
                # A run whose every first save is killed goes on for ever from where it was.
                _wait_for_save(process, run, unfinished, after=began_at)
                time.sleep(generator.uniform(0, _SAVE_S))
            size, family = _size_of_results(run), _family(process)
            kill = _kill(process, victim, run)
            if kill is not None and victim == "save" and not _unfinished_saves(run) - unfinished:
                # It had ended meanwhile.
                kill.what = "driver"
            if kill is None:
                continue
            outcome.kills.append(kill)
            print(
                f"kill {len(outcome.kills)} of {kills}: {kill.what}, after iteration {kill.iteration}", file=sys.stderr
            )
            since = time.monotonic()
            if kill.what in _OF_DRIVER:
                kill.orphans_s = _until_gone(family, since)
            process, kill.recovery_s = _recovered(process, start, run, size, since)
    finally:
        process.kill()
    outcome.seconds = time.monotonic() - started
    judge(outcome, run)
    return outcome


def _start(file: Path, folder: Path, *, resume: bool) -> _Process:
    command = [sys.executable, "-m", "tppo_rl", "train", "file", str(file), "--results", str(folder)]
    with (folder / "output.txt").open("ab") as output:
        return subprocess.Popen(
            [*command, *(["--resume"] if resume else [])], stdout=output, stderr=output, start_new_session=True
        )


def _iterations(run: Path) -> int:
    """Iterations of the run that have ended, without those that a resume has taken back."""
    file = run / "result.json"
    if not file.is_file():
        return 0
    lines = file.read_text(encoding="utf-8").splitlines()
    return int(json.loads(lines[-1])["training_iteration"]) if lines and lines[-1].endswith("}") else 0


def _wait(process: _Process, run: Path, moment: float | None) -> int | None:
    """Waits for the run's end, and returns its exit status; None: the moment has come."""
    seen, last = _iterations(run), time.monotonic()
    while process.poll() is None:
        if moment is not None and time.monotonic() > moment and _iterations(run):
            return None
        if (now := _iterations(run)) != seen:
            seen, last = now, time.monotonic()
        if time.monotonic() - last > _LONGEST_S:
            process.kill()
            return -1
        time.sleep(_POLL_S)
    return process.returncode


def _wait_for_save(process: _Process, run: Path, left: set[tuple[str, int]], *, after: Path | None) -> None:
    """Waits until a checkpoint is being written, and is not the first one, or the run has ended or wrote none for too long.

    Args:
        process: The run.
        run: Its folder.
        left: What earlier kills have left unfinished.
        after: The checkpoint from which the process has begun.
    """
    since = time.monotonic()
    while process.poll() is None and time.monotonic() - since < _LONGEST_S:
        if _unfinished_saves(run) - left and find_newest_checkpoint(run) != after:
            return
        time.sleep(0.001)


def _unfinished_saves(run: Path) -> set[tuple[str, int]]:
    """Names of checkpoints that are not whole, and when something was last made in them."""
    found = set()
    for path in (run / CHECKPOINTS).glob(f"{PARTIAL}*"):
        with suppress(FileNotFoundError):
            found.add((path.name, path.stat().st_mtime_ns))
    return found


def _kill(process: _Process, what: str, run: Path) -> Kill | None:
    iteration = _iterations(run)
    if what in _OF_DRIVER:
        process.kill()
        process.wait()
        return Kill(what, iteration)
    found = [one for one in _family(process) if _title(one).startswith(VICTIMS[what])]
    if not found:
        return None
    os.kill(found[0].pid, signal.SIGSTOP if what == "hang" else signal.SIGKILL)
    return Kill(what, iteration)


def _family(process: _Process) -> list[psutil.Process]:
    """The processes that a run has started and that sample or train for it."""
    titles = tuple(title for title in VICTIMS.values() if title)
    try:
        return [one for one in psutil.Process(process.pid).children(recursive=True) if _title(one).startswith(titles)]
    except psutil.Error:
        return []


def _until_gone(family: Sequence[psutil.Process], since: float) -> float | None:
    while time.monotonic() - since < _LONGEST_S:
        if not any(map(_is_alive, family)):
            return time.monotonic() - since
        time.sleep(_POLL_S)
    return None


def _is_alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def _title(process: psutil.Process) -> str:
    try:
        return str((process.cmdline() or [""])[0])
    except psutil.Error:
        return ""


def _recovered(
    process: _Process, start: Callable[[], _Process], run: Path, size: int, since: float
) -> tuple[_Process, float | None]:
    """Waits until an iteration has ended after a kill, and goes on with a run that has ended, once.

    Args:
        process: The run.
        start: Goes on with it.
        run: Its folder.
        size: Bytes of its results at the kill.
        since: When the kill was.

    Returns:
        The run's process, and the seconds that it took; None: the run ended before, or took too long.
    """
    restarted = False
    while time.monotonic() - since < _LONGEST_S:
        if process.poll() == 0 or (process.poll() is not None and restarted):
            break
        if process.poll() is not None:
            process, restarted = start(), True
        if _size_of_results(run) != size and _iterations(run):
            return process, time.monotonic() - since
        time.sleep(_POLL_S)
    return process, None


def _size_of_results(run: Path) -> int:
    file = run / "result.json"
    return file.stat().st_size if file.is_file() else 0
