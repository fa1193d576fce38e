"""Options of the policy's advantages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from tppo_rl.config.section import Condition, Part, Section, option, refuse
from tppo_rl.core.registry import PartSpec

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

LENGTH_ADAPTIVE = "length_adaptive"
"""Value of `lambda_` that makes it depend on the length of the response."""
AUTO = "auto"
"""Value of `unfinished_advantage_scale` that makes it depend on what the critic knows."""


def _estimator(options: Options) -> str:
    return options.advantages.advantage_estimator.name


_ESTIMATOR = "advantage_estimator"
_BY_VALUES = Condition(f"{_ESTIMATOR}='egae' or 'gae'", lambda options: _estimator(options) != "group_relative")
_EGAE = Condition(f"{_ESTIMATOR}='egae'", lambda options: _estimator(options) not in ("gae", "group_relative"))
_GROUP_RELATIVE = Condition(
    f"{_ESTIMATOR}='group_relative'", lambda options: _estimator(options) not in ("egae", "gae")
)
_EGAE_OF_WINDOWS = Condition(
    f"{_ESTIMATOR}='egae' and a window_length below max_response_length",
    lambda options: _estimator(options) == "egae" and options.rollout.has_windows,
)
_NORMALIZED = Condition("advantage_normalization", lambda options: options.advantages.advantage_normalization != "none")


class AdvantageOptions(Section):
    """How the policy's advantages are estimated."""

    advantage_estimator: Part = option(
        PartSpec("egae"),
        "`egae` (T-PPO); `gae`, for whole episodes only (PPO); `group_relative`, which compares a return with those of the "
        "other responses to the prompt and needs no critic (GRPO); or `module:object` of your own estimator.",
    )
    gamma: float = option(1.0, "Discount for each token (T-PPO: 1).", gt=0, le=1, read_with=_BY_VALUES)
    lambda_: Annotated[float, Field(ge=0, le=1)] | Literal["length_adaptive"] = option(
        0.95,
        "Decay lambda of the policy's advantages; `length_adaptive` is 1 - 1 / (lambda_alpha * l) for a response of l tokens "
        "so far (VAPO).",
        read_with=_BY_VALUES,
        perturbable=True,
    )
    lambda_alpha: float = option(0.05, "alpha of the length-adaptive lambda (VAPO: 0.05).", gt=0)
    boundary_value: Literal["hold", "bootstrap", "tail_corrected"] = option(
        "hold",
        "Value that EGAE uses as V(s_l) at the end of an unfinished fragment: `hold` is V(s_(l-1)) (T-PPO), `bootstrap` is the "
        "critic's V(s_l), `tail_corrected` is the same with renormalized weights (arXiv 2602.03386).",
        read_with=_EGAE,
    )
    unfinished_advantage_scale: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = option(
        1.0,
        "Factor on the advantages of unfinished windows. If rewards come at the end, these advantages are differences of the "
        "critic's values, and noise while the critic explains little of the returns (`critic/explained_variance`). 1 is "
        "T-PPO; 0 trains finished windows alone; `auto` begins at 0 and follows how much of the differences the returns confirm later, "
        "less one standard error (`policy/unfinished_scale`).",
        read_with=_EGAE_OF_WINDOWS,
        perturbable=True,
    )
    hindsight: bool = option(
        False,
        "Train the earlier windows of an episode once more when it has ended: on the return minus the boundary value that was "
        "used, and on what `unfinished_advantage_scale` left out, with truncated importance weights. It needs a window_length "
        "below max_response_length.",
    )
    advantage_normalization: Literal["none", "whiten", "scale"] = option(
        "none", "`whiten`: to mean 0 and standard deviation 1; `scale`: to standard deviation 1 alone."
    )
    advantage_normalization_scope: Literal["batch", "group"] = option(
        "batch",
        "Normalize over the whole batch of all learners, or over the responses to each prompt.",
        read_with=_NORMALIZED,
    )
    group_scale: bool = option(
        True,
        "Divide group-relative advantages by the group's standard deviation; False is Dr. GRPO (arXiv 2503.20783).",
        read_with=_GROUP_RELATIVE,
    )

    def check(self, options: Options) -> None:
        """Checks that the estimator has what it needs."""
        name, rollout = self.advantage_estimator.name, options.rollout
        if name == "gae" and rollout.has_windows:
            refuse(
                "advantage_estimator",
                name,
                f"plain GAE has no value for a response that goes on after window_length={rollout.window_length}; set "
                "window_length to null, or advantage_estimator to 'egae'",
            )
        if name == "group_relative" and rollout.has_windows:
            refuse(
                "advantage_estimator",
                name,
                "responses are compared when all of a group have ended, and a window is trained before; set window_length to null",
            )
        if name == "group_relative" and options.groups.group_size == 1:
            refuse("group_size", 1, "a response has no others to be compared with; set it to 2 or more")
        self._check_critic(options.models.critic)
        if self.hindsight:
            self._check_hindsight(options)
        if self.unfinished_advantage_scale == AUTO and options.policy_loss.has_kl_in_rewards:
            refuse(
                "unfinished_advantage_scale",
                AUTO,
                "the returns that it holds against the critic's values have no KL in them; set kl_in to 'loss', or give a number",
            )
        if self.advantage_normalization_scope == "group" and options.groups.group_size == 1:
            refuse("advantage_normalization_scope", "group", "there are no groups; set group_size to 2 or more")

    def _check_critic(self, critic: str | None) -> None:
        name = self.advantage_estimator.name
        if name == "group_relative" and critic is not None:
            refuse("critic", critic, "group-relative advantages need no values; set critic to null")
        if name in ("egae", "gae") and critic is None:
            refuse(
                "critic",
                critic,
                f"advantage_estimator={name!r} needs values; set critic to 'separate', or advantage_estimator to "
                "'group_relative'",
            )

    def _check_hindsight(self, options: Options) -> None:
        reason = None
        name = self.advantage_estimator.name
        if options.rollout.window == options.rollout.max_response_length:
            reason = f"without windows there is no earlier one to correct; set it to False, or window_length below max_response_length={options.rollout.max_response_length}"
        elif name != "egae":
            reason = (
                f"it corrects EGAE's boundary value, which advantage_estimator={name!r} does not have; set it to False"
            )
        elif self.advantage_normalization != "none" and self.advantage_normalization_scope == "group":
            reason = (
                "it divides by the standard deviation of a batch, and of a group's responses not all are in the batch of the second "
                "training; set advantage_normalization_scope to 'batch'"
            )
        elif options.policy_loss.kl_coef and options.policy_loss.kl_in == "reward":
            reason = "the return that it compares with has no KL in it; set kl_in to 'loss'"
        if reason is not None:
            refuse("hindsight", self.hindsight, reason)
