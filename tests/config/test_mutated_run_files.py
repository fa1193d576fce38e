"""Run files that chance has broken: a plan, or one error that names a key, and never anything else."""

from __future__ import annotations

import io
import resource
import signal
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from data_sets import NOT_SHIPPED
from rich.console import Console
from run_file_mutations import SHIPPED, mutated

from tppo_rl.config.checks import check_options
from tppo_rl.config.run_files import load_run_file
from tppo_rl.core.errors import OptionError
from tppo_rl.experiment.dry_run import changed_table, run_table

MOST_SECONDS = 2.0
"""Of processor time, which other processes of a busy machine do not lengthen."""
HANGS_AFTER_SECONDS = 20
MEMORY = 1 << 30
"""Bytes that checking a file may take beside what the process has."""


def plan(path: Path, overrides: list[str]) -> str:
    """Returns the plan of a run file as `--dry-run` shows it, but for what is read from the machine and the models."""
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), width=120)
    experiments = load_run_file(path, overrides)
    for experiment in experiments:
        first = next(iter(experiment.points()))
        options = check_options(first, experiment.spec, other_keys=first)
        console.print(run_table(experiment, options, path.parent / experiment.name))
        console.print(changed_table(options, experiment.spec))
    return f"{len(experiments)} experiments"


@contextmanager
def limits() -> Iterator[None]:
    """Neither the network, nor more memory than a check may take, nor a hang."""

    def hangs(*_: Any) -> None:
        raise TimeoutError(f"{HANGS_AFTER_SECONDS} s")

    patch = pytest.MonkeyPatch()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    earlier = signal.signal(signal.SIGALRM, hangs)
    # A hub would be asked for models and data of such names.
    patch.setattr(socket, "getaddrinfo", unreachable)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        patch.undo()
        signal.signal(signal.SIGALRM, earlier)


def unreachable(*_: Any, **__: Any) -> Any:
    raise OSError("no network in this test")


def fault(seed: int, path: Path) -> str | None:
    """Returns what is wrong with the answer to the mutated file of a seed."""
    data, overrides = mutated(seed)
    path.write_bytes(data)
    signal.alarm(HANGS_AFTER_SECONDS)
    begin = time.process_time()
    try:
        answer = plan(path, overrides)
    except OptionError as error:
        answer = str(error)
        first = answer.splitlines()[0] if answer else ""
        answer.encode("utf-8")
        if "=" not in first and ": " not in first:
            return f"names no key: {answer[:300]!r}"
    except (Exception, SystemExit) as error:
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        place = f"{where.tb_frame.f_code.co_filename}:{where.tb_lineno}" if where else "nowhere"
        return f"{type(error).__name__} at {place}: {str(error)[:200]}"
    finally:
        signal.alarm(0)
    seconds = time.process_time() - begin
    return None if seconds <= MOST_SECONDS else f"took {seconds:.1f} s for {answer[:200]!r}"


def faults(seeds: range, path: Path) -> dict[int, str]:
    """Returns the faults by seed."""
    # What is imported once takes seconds, which are not those of a file.
    for name, text in SHIPPED.items():
        path.write_text(text, encoding="utf-8")
        plan(path, NOT_SHIPPED.get(name, []))
    with limits(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {seed: found for seed in seeds if (found := fault(seed, path)) is not None}


def test_brackets_in_values_are_no_markup(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(SHIPPED["quickstart.yaml"], encoding="utf-8")
    assert plan(path, ["system_prompt='[/b] [red]'", "end_of_turn='[/b]'"]) == "1 experiments"


def test_what_chance_has_broken_is_a_plan_or_one_error(tmp_path: Path) -> None:
    assert faults(range(400), tmp_path / "run.yaml") == {}


@pytest.mark.slow
def test_ten_thousand_broken_files(tmp_path: Path) -> None:
    assert faults(range(400, 10_400), tmp_path / "run.yaml") == {}
