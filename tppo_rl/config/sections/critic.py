"""Options of the critic's training."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt

from tppo_rl.config.section import Condition, Pair, Section, option, refuse
from tppo_rl.config.sections.models import HAS_CRITIC
from tppo_rl.config.sections.optimizer import Schedule

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

_REGRESSES_LAMBDA_RETURNS = Condition(
    "critic_targets='lambda_returns' or 'include_unfinished'",
    lambda options: options.critic.critic_targets != "monte_carlo",
)
_WARMS_UP = Condition("critic_warmup_responses above 0", lambda options: options.critic.critic_warmup_responses > 0)
_MAY_BE_BOUNDED = Condition(
    "a critic whose critic_loss is not 'squared_error'",
    lambda options: options.models.critic is not None and options.critic.critic_loss != "squared_error",
)
_HL_GAUSS = Condition(
    "a critic with critic_loss='hl_gauss'",
    lambda options: options.models.critic is not None and options.critic.critic_loss == "hl_gauss",
)


ANSWER_TOKENS = 64
"""Tokens of a known answer that a critic reads which sees it; what follows is left out."""


class CriticOptions(Section):
    """The critic's regression targets and its training."""

    critic_lr: Schedule = option(
        2e-6,
        "Learning rate of the critic (VAPO: twice the policy's): a number or a schedule.",
        read_with=HAS_CRITIC,
        perturbable=True,
    )
    critic_loss: Literal["auto", "squared_error", "cross_entropy", "hl_gauss"] = option(
        "auto",
        "What the value head is and how it learns. `squared_error`: any number, 0.5 (V - G)^2; `cross_entropy`: a sigmoid over "
        "`value_range`, for returns that lie at its ends, such as 0 and 1; `hl_gauss`: a histogram over `value_range`, for returns "
        "in between (arXiv 2403.03950); `auto`: cross-entropy where the range of returns is known, else squared error.",
        read_with=HAS_CRITIC,
    )
    value_range: Pair | None = option(
        None,
        "Lowest and highest return; what lies beyond counts as the nearer of the two. None: as `rewards` and the environment "
        "say. Your own reward functions and reward models do not say it.",
        read_with=_MAY_BE_BOUNDED,
    )
    value_bins: int = option(
        51, "Bins of the histogram, three beyond each end of `value_range` included.", ge=8, read_with=_HL_GAUSS
    )
    critic_initial_value: Annotated[float, Field(allow_inf_nan=False)] | Literal["mean_return"] | None = option(
        None,
        "Value that a new critic gives everywhere before it has learned anything. `mean_return`: the mean return of the first "
        "evaluation (without one, or where the reward has parts of its own, of the first finished responses); or a number in units "
        "of reward. None: `mean_return`, and 0 with squared error.",
        read_with=HAS_CRITIC,
    )
    critic_sees_answer: bool = option(
        False,
        "Whether the critic reads the known answer of each problem before prompt and response, in training alone: `gold_answer` or `answer` of "
        "the environment's info, up to 64 tokens.",
        read_with=HAS_CRITIC,
    )
    critic_targets: Literal["monte_carlo", "lambda_returns", "include_unfinished"] = option(
        "monte_carlo",
        "`monte_carlo`: returns of finished episodes (T-PPO, VAPO); `lambda_returns`: lambda-returns of finished episodes; "
        "`include_unfinished`: also A_t + V(s_t) on unfinished windows (T-PPO argues against it).",
        read_with=HAS_CRITIC,
    )
    critic_lambda: float = option(
        1.0,
        "Decay lambda of the critic's lambda-returns (VC-PPO: 1).",
        ge=0,
        le=1,
        read_with=_REGRESSES_LAMBDA_RETURNS,
    )
    value_batch_tokens: PositiveInt | None = option(
        None,
        "Response tokens per learner for which finished episodes are held before the critic trains on them; None: it trains "
        "at once.",
        read_with=HAS_CRITIC,
    )
    value_clip: float | None = option(
        None,
        "Distance from the value before the update beyond which a value is not moved further, in units of reward (PPO2: 0.2).",
        gt=0,
        read_with=HAS_CRITIC,
        perturbable=True,
    )
    critic_num_epochs: PositiveInt = option(
        1,
        "Passes of the critic over the finished episodes of a batch.",
        read_with=HAS_CRITIC,
        perturbable=True,
    )
    critic_minibatch_size: PositiveInt | None = option(
        None, "Response tokens of a critic step, per learner; None: the whole batch.", read_with=HAS_CRITIC
    )
    critic_warmup_updates: int = option(
        0, "Number of first updates in which the policy is frozen (VC-PPO).", ge=0, read_with=HAS_CRITIC
    )
    critic_warmup_responses: int = option(
        0,
        "Number of finished responses that the critic learns from before the policy begins to train. Where they are long, no number of "
        "updates tells how many have finished. With `critic_warmup_updates` both must be through.",
        ge=0,
        read_with=HAS_CRITIC,
    )
    critic_warmup_slope: float | None = option(
        None,
        "Ends `critic_warmup_responses` early, once the critic's differences over windows predict later returns with this slope (1: as "
        "they are), less three standard errors; None: it is not ended early.",
        gt=0,
        le=1,
        read_with=_WARMS_UP,
    )
    critic_grad_clip: float | None = option(
        1.0,
        "Largest global gradient norm of the critic; None: no clipping.",
        gt=0,
        read_with=HAS_CRITIC,
        perturbable=True,
    )
    parallel_critic: bool = option(
        False,
        "Train the critic in a thread of its own while the policy trains. It is for one learner on a CPU with a core that is "
        "not always busy. The result is the same.",
        read_with=HAS_CRITIC,
    )

    def check(self, options: Options) -> None:
        """Checks the options against the critic's thread, and against held episodes."""
        learners = options.learners
        self._check_value_form()
        self._check_warmup(options)
        if self.parallel_critic and learners.num_learners > 1:
            refuse(
                "parallel_critic",
                self.parallel_critic,
                f"num_learners={learners.num_learners} exchange gradients in one order; set it to false, or num_learners to 1",
            )
        if self.parallel_critic and learners.num_gpus_per_learner:
            refuse(
                "parallel_critic",
                self.parallel_critic,
                f"num_gpus_per_learner={learners.num_gpus_per_learner}, and a GPU takes the work of both threads one after the "
                "other; set it to false",
            )
        if self.value_batch_tokens is None:
            return
        if self.critic_targets != "monte_carlo":
            refuse(
                "value_batch_tokens",
                self.value_batch_tokens,
                f"critic_targets={self.critic_targets!r} depends on values that have changed when held episodes are trained; "
                "set critic_targets to 'monte_carlo', or value_batch_tokens to null",
            )
        if self.critic_warmup_responses:
            refuse(
                "critic_warmup_responses",
                self.critic_warmup_responses,
                "counts responses when they have finished, and held ones are learned from later; set value_batch_tokens to null, or "
                "give critic_warmup_updates",
            )
        if self.value_clip is not None:
            refuse(
                "value_clip",
                self.value_clip,
                "values of held episodes are not kept; set it or value_batch_tokens to null",
            )
        if options.policy_loss.has_kl_in_rewards:
            refuse(
                "value_batch_tokens",
                self.value_batch_tokens,
                "held episodes have the environment's rewards alone; set kl_in to 'loss'",
            )

    def _check_warmup(self, options: Options) -> None:
        if self.critic_warmup_slope is None or not self.critic_warmup_responses:
            return
        if options.rollout.window == options.rollout.max_response_length:
            refuse(
                "critic_warmup_slope",
                self.critic_warmup_slope,
                "without windows no differences are measured; set it to null, or window_length below "
                f"max_response_length={options.rollout.max_response_length}",
            )
        if options.policy_loss.has_kl_in_rewards:
            refuse(
                "critic_warmup_slope",
                self.critic_warmup_slope,
                "the returns that it holds against the critic's values have no KL in them; set kl_in to 'loss', or it to null",
            )

    def _check_value_form(self) -> None:
        if self.value_range is not None:
            low, high = self.value_range
            if not (math.isfinite(low) and math.isfinite(high) and low < high):
                refuse(
                    "value_range",
                    list(self.value_range),
                    "give [lowest, highest], two finite numbers, the first below the second",
                )
            value = self.critic_initial_value
            if isinstance(value, float) and not low <= value <= high:
                refuse(
                    "critic_initial_value",
                    value,
                    f"lies outside of value_range={list(self.value_range)}; give a number inside",
                )
        if self.value_clip is not None and self.critic_loss not in ("auto", "squared_error"):
            refuse(
                "value_clip",
                self.value_clip,
                f"is a clip of squared errors; set it to null, or critic_loss={self.critic_loss!r} to 'squared_error'",
            )
