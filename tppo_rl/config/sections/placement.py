"""Options of placement: a preset for the shares of GPUs that engines and learners get."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator

from tppo_rl.config.section import Condition, Section, option
from tppo_rl.core.gpus import parse_gpus

HAS_PLACEMENT = Condition("a placement", lambda options: options.placement.placement is not None)
PLACEMENT_DEFAULTS: dict[str, Any] = {"dtype": "bfloat16"}
"""Defaults of a run with a placement that do not depend on its GPUs."""


def _stated(text: str) -> str:
    parse_gpus(text)
    return text


class PlacementOptions(Section):
    """Where engines and learners stand: on the same GPUs, or apart."""

    placement: Literal["colocated", "disaggregated", "cluster"] | None = option(
        None,
        "Sets the shares of GPUs that you leave out: `num_env_runners`, `num_gpus_per_env_runner`, `num_learners`, "
        "`num_gpus_per_learner`, `distributed`, `engine.gpu_memory_utilization`, `engine.enable_sleep_mode` and `dtype` "
        "(`bfloat16`). `colocated`: each GPU of a machine is shared by an engine and a learner; `disaggregated`: engines and learners "
        "have whole GPUs of a machine; `cluster`: the same over the nodes of a cluster, learners on one of them where they fit; None: "
        "nothing is set.",
    )
    gpus: Annotated[str, AfterValidator(_stated)] | None = option(
        None,
        "GPUs that the placement is made for: `h100`, `8 x h100`, `2 x 8 x h100` (2 nodes), or `2 x 24 GiB`; None: those of this "
        "machine, or of the Ray cluster that is joined.",
        read_with=HAS_PLACEMENT,
    )
