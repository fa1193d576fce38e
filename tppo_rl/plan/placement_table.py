"""A placement as a table: what it has set, and what learner and engine take of a GPU; and all placements of a model, side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from tppo_rl.core.errors import OptionError
from tppo_rl.core.gpus import Gpus
from tppo_rl.plan.card_memory import engine_sleeps
from tppo_rl.plan.memory import GIB
from tppo_rl.plan.placement import Placed, place

_SIDE_BY_SIDE: dict[str, dict[str, Any]] = {
    "colocated, awake": {"placement": "colocated", "mode": "async"},
    "colocated, sleeping": {"placement": "colocated", "mode": "sync"},
    "disaggregated": {"placement": "disaggregated"},
    "cluster": {"placement": "cluster"},
}


def placement_table(placed: Placed) -> Table:
    """What a placement has set in a run, and the memory of one GPU."""
    options, needs, card = placed.options, placed.needs, placed.gpus.memory
    title = f"placement: {options.placement.placement} on {gpus_words(placed.gpus)}"
    table = Table(title=Text(title), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in sorted(placed.set_here.items()):
        table.add_row(f"  {key}", Text(f"{value}"))
    share = placed.utilization * card
    while_training = ", the engine asleep" if engine_sleeps(options) else ""
    tokens = needs.kv_tokens(card, placed.utilization)
    table.add_row("learner on a GPU", f"{_gib(needs.held)} all the time, {_gib(needs.peak)} at most{while_training}")
    table.add_row("engine on a GPU", f"{placed.utilization:g} of {_gib(card)}: {_gib(share)}")
    table.add_row("keys and values", f"{tokens:,} tokens; full slots hold {needs.slot_tokens:,}")
    return table


def placements_table(given: Mapping[str, Any], node: Gpus) -> Table:
    """What fits of a model under each placement.

    Args:
        given: Options that do not depend on a placement, by key.
        node: GPUs of one machine; a cluster has two of them.
    """
    table = Table(title=Text(f"placements on {gpus_words(node)}; cluster: two of these machines"))
    for name in ("placement", "engines + learners", "learner: always, at most", "engine's share", "keys and values"):
        table.add_column(name, overflow="fold")
    for name, own in _SIDE_BY_SIDE.items():
        gpus = Gpus(node.nodes * 2, node.memory, node.source) if own["placement"] == "cluster" else node
        try:
            placed = place({**given, **own}, {}, gpus)
        except OptionError as error:
            # The words before the remedy are those of the columns.
            table.add_row(name, "does not fit", Text(str(error).partition(": ")[2].rpartition("; ")[2]), "", "")
            continue
        learners, rollout, needs = placed.options.learners, placed.options.rollout, placed.needs
        sharded = ", fsdp" if learners.distributed == "fsdp" else ""
        tokens = needs.kv_tokens(gpus.memory, placed.utilization)
        table.add_row(
            name,
            f"{rollout.num_env_runners} + {learners.num_learners}{sharded}",
            f"{_gib(needs.held)}, {_gib(needs.peak)}",
            f"{placed.utilization:g}: {_gib(placed.utilization * gpus.memory)}",
            f"{tokens:,} tokens; full slots: {needs.slot_tokens:,}",
        )
    return table


def gpus_words(gpus: Gpus) -> str:
    """GPUs in words, such as `2 x 8 GPUs of 74.5 GiB (Ray's nodes)`."""
    nodes = gpus.nodes
    alike = len(set(nodes)) == 1
    counts = (f"{len(nodes)} x " if len(nodes) > 1 else "") + str(nodes[0]) if alike else " + ".join(map(str, nodes))
    return f"{counts} {'GPU' if gpus.total == 1 else 'GPUs'} of {_gib(gpus.memory)} ({gpus.source})"


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
