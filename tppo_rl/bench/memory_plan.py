"""The memory plan of a learner against measured peaks: `tppo-rl bench memory --plan`.

Every setting is measured in a process of its own: a run's learner, built as RLlib builds it, makes a short update, which makes the
moments, and then one of a full micro-batch. The peak is that of resident memory, twice:

    in use      malloc gives every freed block of 1 MiB or more back to the system: what the tensors take
    malloc's    malloc as a run has it, which keeps freed blocks and cannot fill them all again

"in use" costs time, for the system zeroes every page anew.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from tppo_rl.bench.memory_settings import FITTED, PRETRAINED, UNSEEN, Setting
from tppo_rl.bench.records import Figure, figure_of
from tppo_rl.bench.workloads import PROMPT, random_model, whole_episodes
from tppo_rl.config.options import Options
from tppo_rl.core.process_memory import MALLOC_TUNABLES, process_memory
from tppo_rl.plan.memory import GIB, memory_of

_GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": "1048576", "MALLOC_TRIM_THRESHOLD_": "1048576"}
_GROUPED = {"advantage_estimator": "group_relative"}
"""Without a critic there are no values to estimate advantages with."""


def memory_plan_figures(*, pretrained: Path, only: Sequence[str], kept_blocks: bool, repeats: int) -> list[Figure]:
    """Measures the settings of `memory_settings`.

    Args:
        pretrained: Folder of the model that `PRETRAINED` stands for.
        only: Parts of names of settings; empty: all.
        kept_blocks: Whether to measure with malloc as a run has it, too.
        repeats: Measurements of each.

    Raises:
        ValueError: there is no model, or no setting of such a name.
    """
    settings = [setting for setting in (*FITTED, *UNSEEN) if not only or any(part in setting.name for part in only)]
    if not settings:
        raise ValueError(f"only={list(only)}: no setting is called so")
    if any(setting.model == PRETRAINED for setting in settings) and not (pretrained / "config.json").is_file():
        raise ValueError(
            f"pretrained={str(pretrained)!r}: there is no model; `make real-model` makes one, or leave it out"
        )
    figures = []
    with TemporaryDirectory() as folder:
        for setting in settings:
            model = pretrained if setting.model == PRETRAINED else _saved(setting.model, Path(folder))
            planned = planned_bytes(setting, model)
            name = setting.name + (" (unseen)" if setting in UNSEEN else "")
            figures.append(figure_of(f"planned, {name}", [planned / GIB], "GiB"))
            ways = {"in use": _GIVES_BACK} | ({"malloc's": MALLOC_TUNABLES} if kept_blocks else {})
            for way, environment in ways.items():
                peaks = [measured_bytes(setting, model, environment) for _ in range(repeats)]
                figures.append(figure_of(f"peak {way}, {name}", [peak / GIB for peak in peaks], "GiB"))
                ratios = [planned / peak for peak in peaks]
                figures.append(figure_of(f"ratio {way}, {name}", ratios, "ratio"))
                print(f"{name}: planned {planned / GIB:.2f} GiB, peak {way} {peaks[-1] / GIB:.2f}", file=sys.stderr)
    return figures


def planned_bytes(setting: Setting, model: Path) -> int:
    """Returns what the plan says of the setting's learner, bytes."""
    return memory_of(Options.of(num_learners=1, **_options(setting, model))).of("learner")


def measured_bytes(setting: Setting, model: Path, environment: dict[str, str]) -> int:
    """Measures the setting's learner in a process of its own, with variables in its environment; bytes of resident memory."""
    task = {"length": setting.length, "tokens": setting.tokens, "options": _options(setting, model)}
    command = [sys.executable, "-m", __name__, json.dumps(task)]
    run = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise RuntimeError(
            f"{setting.name}: the measurement ended with exit code {run.returncode}:\n{run.stderr[-2000:]}"
        )
    return int(run.stdout.splitlines()[-1])


def _options(setting: Setting, model: Path) -> dict[str, Any]:
    options = {"policy_model": str(model), "micro_batch_tokens": setting.tokens, **setting.options}
    return options if options.get("critic", "separate") is not None else options | _GROUPED


def _saved(name: str, folder: Path) -> Path:
    """Saves a random model, once."""
    if not (folder / name).is_dir():
        torch.manual_seed(0)
        random_model(name).save_pretrained(folder / name)
    return folder / name


def _measure(length: int, tokens: int, options: dict[str, Any]) -> int:
    """Makes the two updates in this process and returns its peak."""
    import gymnasium as gym
    from ray.rllib.core import DEFAULT_MODULE_ID
    from ray.rllib.core.learner.training_data import TrainingData

    from tppo_rl.algorithms import TPPOConfig
    from tppo_rl.core.fragments import table_from_fragments

    config = TPPOConfig().update_from_dict(options)
    space = gym.spaces.Text(max_length=1)
    group = config.build_learner_group(spaces={DEFAULT_MODULE_ID: (space, space)})
    vocabulary = group._learner.module[DEFAULT_MODULE_ID].policy.model.config.vocab_size
    episodes = tokens // length
    for work in (
        whole_episodes(vocabulary, tokens=1, length=PROMPT + 1),
        whole_episodes(vocabulary, tokens=episodes * (length - PROMPT), length=length),
    ):
        group.update(training_data=TrainingData(batch=table_from_fragments(work)))
    return process_memory("VmHWM")


if __name__ == "__main__":
    print(_measure(**json.loads(sys.argv[1])))
