"""Options of the policy's loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator

from tppo_rl.config.section import Condition, Pair, Part, Section, option, refuse
from tppo_rl.config.sections.models import HAS_REFERENCE
from tppo_rl.core.registry import PartSpec

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

_TRUNCATES = Condition(
    "off_policy_correction='truncated_importance' or hindsight",
    lambda options: options.policy_loss.off_policy_correction == "truncated_importance" or options.advantages.hindsight,
)
_CLIPS = Condition(
    "a policy_loss that clips, which 'cispo' does not", lambda options: options.policy_loss.policy_loss.name != "cispo"
)
_BOUNDS = "must be two bounds with 0 <= low < high, such as [0.5, 2]"


def _two(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 2:
        raise ValueError(_BOUNDS)
    return value


def _rising(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= bounds[0] < bounds[1]:
        raise ValueError(_BOUNDS)
    return bounds


class PolicyLossOptions(Section):
    """The loss that the policy minimizes."""

    policy_loss: Part = option(
        PartSpec("clipped"),
        "`clipped`: PPO's surrogate; `cispo` (arXiv 2506.13585); `gspo`: ratios of whole responses (arXiv 2507.18071); or "
        "`module:object` of your own loss.",
    )
    clip_low: float = option(
        0.2, "Ratios below 1 - clip_low are clipped.", ge=0, le=1, perturbable=True, read_with=_CLIPS
    )
    clip_high: float = option(
        0.28, "Ratios above 1 + clip_high are clipped (DAPO: clip-higher).", ge=0, perturbable=True, read_with=_CLIPS
    )
    dual_clip: float | None = option(
        None,
        "With a negative advantage the loss is at most -dual_clip * A (arXiv 1912.09729: 3).",
        gt=1,
        perturbable=True,
        read_with=_CLIPS,
    )
    loss_aggregation: Literal["token", "response"] = option(
        "token",
        "Mean of the loss: `token` over all tokens of a minibatch (DAPO); `response` over its responses, each with its token "
        "mean (GRPO).",
    )
    entropy_coef: float = option(0.0, "Weight of the entropy bonus, per nat.", ge=0, perturbable=True)
    kl_coef: float = option(0.0, "Weight of KL(policy || reference), per nat (GRPO: 0.04); 0 loads no reference.", ge=0)
    kl_estimator: Literal["k1", "k2", "k3"] = option(
        "k3", "Estimator of KL(policy || reference) (GRPO: k3).", read_with=HAS_REFERENCE
    )
    kl_in: Literal["loss", "reward"] = option(
        "loss", "KL as a term of the loss (GRPO), or subtracted from the rewards (PPO).", read_with=HAS_REFERENCE
    )
    positive_lm_coef: float = option(
        0.0,
        "Weight of -log pi on the tokens of right responses that have ended (VAPO: 0.1).",
        ge=0,
        perturbable=True,
    )
    off_policy_correction: Literal["behavior", "none", "truncated_importance", "decoupled"] = option(
        "behavior",
        "Denominator of the ratio. `behavior` takes the engine's log-probs, so the clip also bounds staleness. The others take "
        "the trainer's log-probs before the update: `none` leaves staleness uncorrected, `decoupled` weights tokens by trainer "
        "/ engine (arXiv 2505.24298), `truncated_importance` does so with at most `importance_cap`.",
    )
    importance_cap: float = option(
        2.0,
        "Largest importance weight of a token (`truncated_importance`, `hindsight`).",
        gt=0,
        read_with=_TRUNCATES,
        perturbable=True,
    )
    sequence_mask: Annotated[Pair, BeforeValidator(_two), AfterValidator(_rising)] | None = option(
        None,
        "Bounds on the geometric mean of a fragment's importance weights, such as [0.5, 2]; outside of them the surrogate of "
        "the fragment is left out.",
    )

    @property
    def recomputes_log_probs(self) -> bool:
        """Whether an extra forward pass gives the log-probs under the weights before the update."""
        return self.off_policy_correction != "behavior" or self.sequence_mask is not None

    @property
    def has_kl_in_rewards(self) -> bool:
        """Whether KL is subtracted from the rewards; values and returns then include it."""
        return bool(self.kl_coef) and self.kl_in == "reward"

    def check(self, options: Options) -> None:
        """Checks the loss against estimators and windows."""
        rollout = options.rollout
        if self.loss_aggregation == "response" and rollout.has_windows:
            refuse(
                "loss_aggregation",
                self.loss_aggregation,
                f"a fragment of window_length={rollout.window_length} is not a response, so that long responses would weigh "
                "more the more windows they have; set it to 'token', or window_length to null",
            )
        if self.policy_loss.name == "gspo" and rollout.has_windows:
            refuse(
                "policy_loss",
                self.policy_loss.name,
                "its ratio is that of a whole response, the geometric mean over all its tokens, and a window of "
                f"window_length={rollout.window_length} has a part of them, with later tokens under other weights; set "
                "window_length to null, or policy_loss to 'clipped' or 'cispo'",
            )
        if self.kl_coef and self.kl_in == "loss" and self.kl_estimator == "k1":
            refuse(
                "kl_estimator",
                self.kl_estimator,
                "the gradient of k1 as a term of the loss is zero on average; use 'k2' or 'k3', or set kl_in to 'reward'",
            )
        if self.has_kl_in_rewards and options.advantages.advantage_estimator.name == "group_relative":
            refuse("kl_in", self.kl_in, "group-relative advantages compare the environment's rewards; set it to 'loss'")
