"""Options of forward passes: how much at a time, and what becomes of contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from tppo_rl.config.section import Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


class ComputeOptions(Section):
    """What a forward pass of a learner holds."""

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

    def check(self, options: Options) -> None:
        """Checks what goes together with contexts that have no gradient."""
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
