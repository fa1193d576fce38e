"""Options of the policy's optimizer and of batch sizes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PositiveInt

from tppo_rl.config.section import Pair, Section, option, refuse
from tppo_rl.core.schedules import LARGEST_RATE, fault, largest_rate

if TYPE_CHECKING:
    from tppo_rl.config.options import Options


def _decay_rates(betas: tuple[float, float]) -> tuple[float, float]:
    if not all(0 <= beta < 1 for beta in betas):
        raise ValueError("must be two decay rates in [0, 1), such as [0.9, 0.99]")
    return betas


def _two(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError("must be two decay rates in [0, 1), such as [0.9, 0.99]")
    return value


def _rising(rate: Any) -> Any:
    if isinstance(rate, int | float):
        if not 0 <= rate <= LARGEST_RATE:
            bound = "greater than or equal to 0" if rate < 0 else f"less than or equal to {LARGEST_RATE}"
            raise ValueError(f"input should be {bound}")
    elif (problem := fault(rate)) is not None:
        raise ValueError(problem)
    return rate


Schedule = Annotated[
    float | list[list[float] | tuple[float, float]] | tuple[tuple[float, float], ...], AfterValidator(_rising)
]
"""A number from 0 to 1, or RLlib's schedule: pairs of trained tokens and rate."""


class OptimizerOptions(Section):
    """AdamW, and the division of a batch into optimizer steps. The critic's own options are in its section."""

    train_batch_size_per_learner: PositiveInt = option(
        4096,
        "Least sampled tokens of an update, per learner (async); in sync mode an update trains one step of all slots.",
    )
    minibatch_size: PositiveInt | None = option(
        None, "Sampled tokens of an optimizer step, per learner; None: the whole batch."
    )
    num_epochs: PositiveInt = option(1, "Passes of the policy over a batch.", perturbable=True)
    policy_token_fraction: float = option(
        1.0,
        "Fraction of a batch's tokens that the policy trains; 1 trains all. Fragments are drawn by a bound on their gradient "
        "(from their advantages and the uncertainty of their tokens) and weighted with one over their probability, so the "
        "expected gradient is the same (arXiv 1803.00942).",
        gt=0,
        le=1,
        perturbable=True,
    )
    lr: Schedule = option(
        1e-6,
        "Learning rate of the policy: a number, or RLlib's schedule `[[tokens, rate], …]` over trained tokens with straight "
        "lines between the points, such as `[[0, 2e-4], [100000, 2e-5]]`.",
        perturbable=True,
    )
    lr_warmup_updates: int = option(
        0,
        "Updates over which the policy's learning rate rises linearly, counted after the critic's warm-up.",
        ge=0,
    )
    adam_betas: Annotated[Pair, BeforeValidator(_two), AfterValidator(_decay_rates)] = option(
        (0.9, 0.99), "AdamW's betas for both models."
    )
    weight_decay: float = option(0.0, "AdamW's weight decay for both models.", ge=0)
    grad_clip: float | None = option(
        1.0, "Largest global gradient norm of the policy; None: no clipping.", gt=0, perturbable=True
    )
    max_skipped_updates: int = option(
        10,
        "Updates in a row that may take no optimizer step because no gradient is finite; then the run ends.",
        ge=1,
    )

    def check(self, options: Options) -> None:
        """Checks that weights decay, and that fragments that are drawn by their advantages are trained on nothing else."""
        for key, rate in (("lr", self.lr), ("critic_lr", options.critic.critic_lr)):
            largest = largest_rate(rate)
            if largest * self.weight_decay > 1:
                refuse(
                    "weight_decay",
                    self.weight_decay,
                    f"a step multiplies weights by 1 - {key} * weight_decay, and with {key}={largest:g} that is below 0; lower one "
                    "of the two",
                )
        if self.policy_token_fraction < 1 and options.policy_loss.positive_lm_coef:
            refuse(
                "policy_token_fraction",
                self.policy_token_fraction,
                "fragments are sampled by their advantages, which "
                f"positive_lm_coef={options.policy_loss.positive_lm_coef} does not look at; set it to 1, or positive_lm_coef "
                "to 0",
            )
