"""Options of learners: how many, with which resources, what each holds and computes at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from tppo_rl.config.section import Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


class LearnerOptions(Section):
    """Learner processes, what they hold, and how they compute."""

    num_learners: int = option(0, "Learner actors; 0 trains in the main process.", ge=0)
    num_cpus_per_learner: float | Literal["auto"] = option(
        "auto", "CPUs of a learner, and so torch's threads; `auto`: 1 without a GPU."
    )
    num_gpus_per_learner: float = option(0, "GPUs of a learner.", ge=0)
    distributed: Literal["ddp", "fsdp"] = option(
        "ddp",
        "`ddp`: every learner holds all weights; `fsdp`: weights, gradients and moments are sharded over the learners. "
        "Checkpoints are the same.",
    )
    gradient_checkpointing: bool = option(
        False, "Compute activations again in the backward pass: less memory, about a third more work."
    )
    micro_batch_tokens: PositiveInt = option(2048, "Tokens of one forward pass, padding included.")
    packing: bool = option(
        False,
        "Sequences of a micro-batch stand in one row without padding. It needs kernels for variable lengths "
        "(`flash_attention_2`); with `sdpa` the mask of a row is quadratic in its tokens: slow on long rows, for tests.",
    )
    context_gradient: bool = option(
        True,
        "Whether the policy's gradient goes through the states of prompt and earlier windows; without, their keys and values "
        "are computed once per update, forward alone, for all passes, and the gradient is biased.",
    )
    context_cache_tokens: int = option(
        0,
        "Tokens of open episodes, per learner, whose keys and values are kept from update to update, for policy and critic: "
        "a context is computed once, and is as old as the window it was. 0 keeps none. `context_gradient` must be false.",
        ge=0,
    )

    @property
    def num_threads(self) -> int:
        """torch's threads in a learner's process."""
        return 1 if self.num_cpus_per_learner == "auto" else max(1, int(self.num_cpus_per_learner))

    def check(self, options: Options) -> None:
        """Checks sharding, and what goes together with contexts that have no gradient."""
        if self.distributed == "fsdp" and self.num_learners < 2:
            refuse(
                "distributed",
                self.distributed,
                f"weights are sharded over learners, and num_learners={self.num_learners} leaves nothing to shard over; set "
                "num_learners to 2 or more, or distributed to 'ddp'",
            )
        self._check_contexts(options)

    def _check_contexts(self, options: Options) -> None:
        loss = options.policy_loss
        if self.context_gradient:
            if self.context_cache_tokens:
                refuse(
                    "context_cache_tokens",
                    self.context_cache_tokens,
                    "a gradient through contexts needs them computed anew; set context_gradient to false",
                )
            return
        if self.context_cache_tokens and (loss.off_policy_correction != "behavior" or loss.sequence_mask):
            refuse(
                "context_cache_tokens",
                self.context_cache_tokens,
                "log-probs that are recomputed come from whole sequences, not from what older weights made of their "
                "contexts; set off_policy_correction to 'behavior' and sequence_mask to null, or context_cache_tokens to 0",
            )
        reason = None
        if self.packing:
            reason = (
                "packing=True: packed sequences stand in one row, which has no context of its own; set packing to false"
            )
        elif loss.positive_lm_coef:
            reason = (
                f"positive_lm_coef={loss.positive_lm_coef!r}: tokens of earlier windows are imitated, which needs their "
                "gradient; set positive_lm_coef to 0"
            )
        if reason is not None:
            refuse("context_gradient", self.context_gradient, f"{reason}, or context_gradient to true")
