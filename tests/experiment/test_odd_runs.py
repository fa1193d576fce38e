"""Run files that chance has changed and that are accepted: they run two updates, or end with one clear error."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from run_file_mutations import mutated

from tppo_rl.config.checks import check_options
from tppo_rl.config.run_files import load_run_file
from tppo_rl.core.errors import OptionError

RUNS = 100
LONGEST_S = 150
"""Some odd numbers ask for more than anybody waits for; such a run is left out."""
DEFAULTS = {"evaluation_duration": 8}


def accepted(folder: Path) -> Iterator[tuple[int, Path]]:
    """Yields seeds and files of accepted experiments with two updates each, as small as their options allow."""
    path = folder / "mutated.yaml"
    for seed in range(100_000):
        data, overrides = mutated(seed)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                experiment = load_run_file(path, overrides)[0]
                options = next(iter(experiment.points()))
                check_options(options, experiment.spec, other_keys=options)
                body = {
                    "run": experiment.spec.name,
                    "stop": {"training_iteration": 2},
                    "config": DEFAULTS | dict(options),
                }
                file = folder / f"odd-{seed}.yaml"
                file.write_text(yaml.safe_dump({f"odd-{seed}": body}), encoding="utf-8")
                load_run_file(file, [])
        except (OptionError, yaml.YAMLError, StopIteration):
            continue
        yield seed, file


def fault(seed: int, file: Path) -> str | None:
    """Runs a file; returns what is wrong, an empty text where the run takes too long."""
    command = [sys.executable, "-m", "tppo_rl", "train", "file", str(file), "--results", str(file.parent / "runs")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, errors="replace"
    )
    try:
        output, _ = process.communicate(timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.communicate()
        return ""
    if "Traceback" in output:
        return output[output.index("Traceback") :][-1500:]
    if process.returncode == 0:
        result = file.parent / "runs" / f"odd-{seed}" / "result.json"
        updates = len(result.read_text().splitlines()) if result.is_file() else 0
        return None if updates == 2 else f"{updates} updates: {output[-500:]}"
    return None if "=" in output or ": " in output else f"status {process.returncode}: {output[-500:]}"


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_what_is_accepted_runs(tmp_path: Path) -> None:
    found: dict[int, str] = {}
    ran = 0
    for seed, file in accepted(tmp_path):
        wrong = fault(seed, file)
        if wrong:
            found[seed] = wrong
        ran += wrong is None
        if ran + len(found) >= RUNS:
            break
    assert found == {}
