"""Options of forward passes: their size, and the handling of contexts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt

from tppo_rl.config.section import Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


class ComputeOptions(Section):
    """Size and content of a learner's forward passes."""

    micro_batch_tokens: PositiveInt = option(
        2048,
        "Most tokens of one forward pass, padding included. It is halved where the memory of a learner's device is full (not with sharded learners).",
    )
    packing: bool = option(
        False,
        "Put the sequences of a micro-batch into one row without padding. Long rows need other kernels than `sdpa`, whose mask is "
        "quadratic in the tokens of a row; `attention: auto` takes them on GPUs.",
    )
    context_gradient: bool = option(
        True,
        "Whether the policy's gradient flows through the states of prompt and earlier windows. If false, their keys and values "
        "are computed once per update, without a gradient, for all passes, and the policy's gradient is biased.",
    )
    context_cache_tokens: int = option(
        0,
        "Tokens of open episodes, per learner, whose keys and values policy and critic keep from update to update. Each context "
        "is then computed once, by the weights of the update that trained it as a window. 0 keeps none. `context_gradient` "
        "must be false.",
        ge=0,
    )

    def check(self, options: Options) -> None:
        """Checks the options that depend on whether contexts have a gradient."""
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
