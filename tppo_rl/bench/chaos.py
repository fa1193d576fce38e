"""A run whose processes are killed at random moments, and what became of it: `tppo-rl bench chaos`.

Everything is the product's own: the run is `tppo-rl train file` in a process of its own, a killed driver is followed by `--resume`, and
kills are SIGKILL. What was trained is read from the run's files: a run that keeps all fragments says which windows the history of its
final weights holds.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

NAME = "chaos"
VICTIMS = {"env-runner": "ray::VLLMEnvRunner", "learner": "ray::_WrappedExecutable", "driver": ""}
"""Beginning of a process's title by what may be killed."""
_POLL_S = 0.2
_ORPHANS = ("ray::VLLMEnvRunner", "ray::_WrappedExecutable", "VLLM::")
_LONGEST_S = 600.0
"""Time without a new iteration after which a run counts as hung."""


def chaos_run(tokens: int) -> dict[str, Any]:
    """Returns an experiment on the long-tailed sums, asynchronous, whose responses span many windows."""
    return {
        "run": "TPPO",
        "env": "tppo_rl/ArithmeticChain-v0",
        "stop": {"num_env_steps_sampled_lifetime": tokens},
        "checkpoint_config": {"checkpoint_frequency": 2, "num_to_keep": 2},
        "config": {
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
        },
    }


@dataclass
class Kill:
    """One kill and how the run came back."""

    what: str
    iteration: int
    """Iterations that had ended."""
    recovery_s: float | None = None
    """Until the next iteration ended; None: it was the last thing that happened."""
    orphans_s: float | None = None
    """After a driver: until its env-runners and engines were gone."""


@dataclass
class Outcome:
    """What became of a run."""

    kills: list[Kill] = field(default_factory=list)
    ended: bool = False
    """Whether the run ended by itself."""
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)
    windows: int = 0
    twice: int = 0
    """Windows that the history of the final weights holds more than once."""
    broken: int = 0
    """Windows that do not follow upon the one before them, token by token."""
    missing_prompts: int = 0
    """Prompts below the largest one whose response has ended, with no window in the history and not open in the checkpoint."""
    identity: int = 0
    """sampled - trained - queued - in flight - dropped, at the end."""


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
        seed: Of moments and victims.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump({NAME: dict(config)}), encoding="utf-8")
    generator = random.Random(seed)
    outcome, started = Outcome(), time.monotonic()
    run = folder / NAME
    process = _start(file, folder, resume=False)
    try:
        while not outcome.ended:
            left = kills - len(outcome.kills)
            moment = time.monotonic() + generator.uniform(0.2, 1.8) * every_s if left else None
            code = _wait(process, run, moment)
            if code is not None:
                outcome.ended = code == 0
                if code != 0 and not _can_resume(run):
                    break
                if code != 0:
                    process = _start(file, folder, resume=True)
                continue
            kill = _kill(process, generator.choice(what), run)
            if kill is None:
                continue
            outcome.kills.append(kill)
            before, since = kill.iteration, time.monotonic()
            if kill.what == "driver":
                kill.orphans_s = _until_orphans_are_gone(since)
                process = _start(file, folder, resume=_can_resume(run))
            kill.recovery_s = _until_after(process, run, before, since)
    finally:
        process.kill()
    outcome.seconds = time.monotonic() - started
    _judge(outcome, run)
    return outcome


def _start(file: Path, folder: Path, *, resume: bool) -> subprocess.Popen[bytes]:
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


def _wait(process: subprocess.Popen[bytes], run: Path, moment: float | None) -> int | None:
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


def _kill(process: subprocess.Popen[bytes], what: str, run: Path) -> Kill | None:
    iteration = _iterations(run)
    if what == "driver":
        process.kill()
        process.wait()
        return Kill(what, iteration)
    title = VICTIMS[what]
    try:
        family = psutil.Process(process.pid).children(recursive=True)
        found = [child for child in family if (child.cmdline() or [""])[0].startswith(title)]
    except psutil.Error:
        return None
    if not found:
        return None
    os.kill(found[0].pid, signal.SIGKILL)
    return Kill(what, iteration)


def _until_orphans_are_gone(since: float) -> float | None:
    while time.monotonic() - since < _LONGEST_S:
        titles = [_title(process) for process in psutil.process_iter()]
        if not any(title.startswith(_ORPHANS) for title in titles):
            return time.monotonic() - since
        time.sleep(_POLL_S)
    return None


def _title(process: psutil.Process) -> str:
    try:
        return str((process.cmdline() or [""])[0])
    except psutil.Error:
        return ""


def _until_after(process: subprocess.Popen[bytes], run: Path, iteration: int, since: float) -> float | None:
    """Seconds until an iteration after the given one has ended; None if the run ends before."""
    size = (run / "result.json").stat().st_size if (run / "result.json").is_file() else 0
    while process.poll() is None and time.monotonic() - since < _LONGEST_S:
        grown = (run / "result.json").is_file() and (run / "result.json").stat().st_size != size
        if grown and _iterations(run) > 0:
            return time.monotonic() - since
        time.sleep(_POLL_S)
    return None


def _can_resume(run: Path) -> bool:
    from tppo_rl.experiment.checkpoints import find_newest_checkpoint

    return find_newest_checkpoint(run) is not None


def _judge(outcome: Outcome, run: Path) -> None:
    """Reads what the history of the final weights holds."""
    import numpy as np

    from tppo_rl.core.begun_episodes import begun_from_table
    from tppo_rl.core.checkpoint_files import LEARNERS, LOOP, checkpoint_state
    from tppo_rl.core.fragments import Fragment
    from tppo_rl.experiment.checkpoints import find_newest_checkpoint
    from tppo_rl.experiment.rollout_view import read_rollouts

    if (run / "summary.json").is_file():
        outcome.summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    windows: defaultdict[int, dict[int, Fragment]] = defaultdict(dict)
    times: Counter[tuple[int, int]] = Counter()
    for kept in read_rollouts(run, 1, None):
        one = kept.fragment
        times[one.episode_id, one.window_index] += 1
        windows[one.episode_id][one.window_index] = one
    outcome.windows, outcome.twice = len(times), sum(count > 1 for count in times.values())
    for of_episode in windows.values():
        for index, window in of_episode.items():
            before = of_episode.get(index - 1)
            if index and (
                before is None or not np.array_equal(window.context, np.concatenate([before.context, before.tokens]))
            ):
                outcome.broken += 1
    checkpoint = find_newest_checkpoint(run)
    if checkpoint is not None:
        ledger = checkpoint_state(checkpoint, without=LEARNERS)[LOOP]["ledger"]
        begun = begun_from_table(ledger["begun"])
        out = {*ledger["returned"], *(number for leased in ledger["leased"].values() for number in leased)}
        outcome.missing_prompts = len(set(range(ledger["next_episode"])) - windows.keys() - out)
        in_flight = sum(episode.open_tokens for episode in begun)
        dropped = sum(ledger["dropped"].values())
        outcome.identity = ledger["sampled"] - ledger["trained"] - ledger["queued"] - in_flight - dropped


def rows_of(outcome: Outcome) -> list[tuple[str, str]]:
    """Returns the table of an outcome: what, and how much."""
    rows = [("the run ended by itself", "yes" if outcome.ended else "NO"), ("seconds", f"{outcome.seconds:.0f}")]
    for what in VICTIMS:
        of_kind = [kill for kill in outcome.kills if kill.what == what]
        if not of_kind:
            continue
        seconds = sorted(kill.recovery_s for kill in of_kind if kill.recovery_s is not None)
        spread = f"{seconds[0]:.0f} … {seconds[len(seconds) // 2]:.0f} … {seconds[-1]:.0f} s" if seconds else "-"
        rows.append(
            (
                f"kills of the {what}, and seconds to the next iteration (least, median, most)",
                f"{len(of_kind)}: {spread}",
            )
        )
        orphans = [kill.orphans_s for kill in of_kind if kill.orphans_s is not None]
        if orphans:
            rows.append(("seconds until a killed driver's processes were gone, most", f"{max(orphans):.1f}"))
    rows += [
        ("windows in the history of the final weights", f"{outcome.windows:,}"),
        ("of these trained more than once", str(outcome.twice)),
        ("of these that do not follow upon the one before", str(outcome.broken)),
        ("prompts neither trained, nor open, nor waiting", str(outcome.missing_prompts)),
        ("tokens unaccounted for", str(outcome.identity)),
        ("tokens dropped, by reason", json.dumps(outcome.summary.get("tokens_dropped_by_reason", {}))),
        ("held-out accuracy at the end", f"{outcome.summary.get('heldout_accuracy_after')}"),
    ]
    return rows
