"""Options of learners: their number, resources and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tppo_rl.config.section import Condition, Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


_ACTORS = Condition("num_learners of 1 or more", lambda options: options.learners.num_learners > 0)


class LearnerOptions(Section):
    """Learner processes: their number, resources and memory."""

    num_learners: int = option(0, "Learner actors; 0 trains in the main process.", ge=0)
    num_cpus_per_learner: Annotated[float, Field(ge=0)] | Literal["auto"] = option(
        "auto", "CPUs of a learner, and the number of torch's threads; `auto`: 1 without a GPU."
    )
    num_gpus_per_learner: float = option(0, "GPUs of a learner.", ge=0)
    distributed: Literal["ddp", "fsdp"] = option(
        "ddp",
        "`ddp`: every learner holds all weights; `fsdp`: weights, gradients and moments are sharded over the learners. "
        "Either loads the checkpoints of the other.",
    )
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass: less memory, about a third more work."
    )

    learner_timeout_s: float = option(
        3600.0,
        "Seconds that learner actors have for an update, or for anything else that they are asked for; then they count as hung and are "
        "killed, and the run ends with one message, or goes on from its newest checkpoint (`max_failures`).",
        gt=0,
        read_with=_ACTORS,
    )

    @property
    def num_threads(self) -> int:
        """Number of torch's threads in a learner's process."""
        return 1 if self.num_cpus_per_learner == "auto" else max(1, int(self.num_cpus_per_learner))

    def check(self, options: Options) -> None:
        """Checks that there is something to shard over."""
        if self.num_learners == 0 and options.placement.placement is not None:
            return  # The placement says how many there are.
        if self.distributed == "fsdp" and self.num_learners < 2:
            refuse(
                "distributed",
                self.distributed,
                f"weights are sharded over learners, and num_learners={self.num_learners} leaves nothing to shard over; set "
                "num_learners to 2 or more, or distributed to 'ddp'",
            )
