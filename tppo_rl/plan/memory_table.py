"""The memory of a run as a table, and that of a model without a run file: `tppo-rl plan --memory`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from tppo_rl.config.options import Options
from tppo_rl.config.run_files import parse_override
from tppo_rl.core.errors import OptionError
from tppo_rl.core.gpus import Gpus
from tppo_rl.plan.memory import GIB, Memory, Process, machine_memory, memory_of
from tppo_rl.plan.placement_table import placements_table
from tppo_rl.plan.roofline import DEVICES, SHAPES


def memory_table(memory: Memory, available: int, where: str = "this machine", *, each: bool = False) -> Table:
    """What a run needs of memory, process by process, beside what there is.

    Args:
        memory: Of the run.
        available: Bytes that there are.
        where: What has them.
        each: Whether every process has so much to itself.
    """
    table = Table(title="memory", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(overflow="fold")
    for process, number in memory.processes.items():
        count = f"{number} processes" if number > 1 else ""
        table.add_row(process, f"{memory.of(process) / GIB:.2f} GiB", count, style="bold")
        for part in memory.parts:
            if part.process == process:
                table.add_row(f"  {part.name}", f"{part.size / GIB:.2f} GiB", part.meaning)
    label, needed = "all processes", memory.total
    if each:
        label, needed = "largest", max(map(memory.of, memory.processes))
    words = f"{where} has" if needed <= available else f"MORE than {where} has:"
    style = None if needed <= available else "bold red"
    table.add_row(label, f"{needed / GIB:.2f} GiB", f"{words} {available / GIB:.1f} GiB", style=style)
    return table


def memory_without_run(
    model: str,
    *,
    card: str,
    devices: int = 2,
    slots: int,
    prompt_length: int,
    response_length: int,
    overrides: Sequence[str],
) -> list[Table]:
    """The table of one learner and one env-runner, and on a card that of the placements.

    Args:
        model: Folder, hub id, shipped model, or name of `SHAPES`.
        card: A name of `DEVICES`, where both have one to themselves and compute in bfloat16; any other: this machine's CPUs.
        devices: GPUs of one machine, for the placements.
        slots: Of the env-runner.
        prompt_length: Longest, tokens.
        response_length: Longest, tokens.
        overrides: KEY=VALUE, options of a run.

    Raises:
        OptionError: a bad option.
    """
    given: dict[str, Any] = {
        "num_envs_per_env_runner": slots,
        "max_prompt_length": prompt_length,
        "max_response_length": response_length,
    }
    alone: dict[str, Any] = {"num_learners": 1, "num_env_runners": 1}
    if card in DEVICES:
        alone |= {"num_gpus_per_learner": 1, "num_gpus_per_env_runner": 1, "dtype": "bfloat16"}
    given |= dict(parse_override(override) for override in overrides)
    if given.get("placement") is not None:
        raise OptionError(f"placement={given['placement']!r}: all of them are compared; leave it out")
    with TemporaryDirectory() as folder:
        given["policy_model"] = model
        if model in SHAPES:
            config = {"model_type": "qwen2", "tie_word_embeddings": model in _TIED, **SHAPES[model]}
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            given["policy_model"] = folder
        memory = memory_of(Options.of(alone | given))
        if card not in DEVICES:
            return [memory_table(memory, machine_memory())]
        node = Gpus((devices,), int(DEVICES[card].memory), card)
        side_by_side = placements_table(given, node)
    parts = tuple(part for part in memory.parts if part.process != "driver" and part.name != "process")
    processes: dict[Process, int] = {
        process: number for process, number in memory.processes.items() if process != "driver"
    }
    on_card = replace(memory, parts=parts, processes=processes)
    return [memory_table(on_card, int(DEVICES[card].memory), f"one {card}", each=True), side_by_side]


_TIED = ("qwen2.5-0.5b", "qwen2.5-1.5b")
"""Models whose output layer is their embedding."""
