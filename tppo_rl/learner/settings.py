"""Settings of the update step, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from tppo_rl.core.schedules import LearningRate, fault
from tppo_rl.maths.advantages import BoundaryValue

AdvantageEstimator = Literal["egae", "gae", "group_relative"]
CriticTargets = Literal["monte_carlo", "lambda_returns", "also_truncated"]
OffPolicyCorrection = Literal["behaviour", "none", "truncated_importance", "decoupled"]
LENGTH_ADAPTIVE = "length_adaptive"
"""Value of `lambda_` that makes it depend on the length of the response."""
Distributed = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class UpdateSettings:
    """Everything that decides how one batch of fragments becomes new weights. Batch sizes are per learner."""

    gamma: float = 1.0
    """Discount of each sampled token."""
    advantage_estimator: AdvantageEstimator = "egae"
    """"egae" (arXiv 2506.15050), "gae" (whole episodes only, arXiv 1506.02438), or "group_relative": returns compared
    with those of the other responses to the prompt (arXiv 2402.03300), which needs no critic."""
    lambda_: float | Literal["length_adaptive"] = 0.95
    """Decay of the policy's advantages; "length_adaptive" is 1 - 1 / (lambda_alpha * l) for a response of l tokens."""
    lambda_alpha: float = 0.05
    """alpha of the length-adaptive lambda (arXiv 2504.05118)."""
    boundary_value: BoundaryValue = "hold"
    """V(s_l) of an unfinished fragment: "hold" (V(s_{l-1}), the paper), "bootstrap" (the critic's V(s_l)), or
    "tail_corrected" (the critic's, with renormalised weights, arXiv 2602.03386)."""
    unfinished_advantage_scale: float = 1.0
    """Factor of the advantages of unfinished windows, which are made of the critic's values where rewards come at the end;
    1 is the paper."""
    advantage_normalisation: Literal["none", "whiten", "scale"] = "none"
    """"whiten" brings advantages to mean 0 and standard deviation 1, "scale" to the latter alone."""
    advantage_normalisation_scope: Literal["batch", "group"] = "batch"
    """Over the tokens of the whole batch on all learners, or of each prompt's responses in it."""
    group_scale: bool = True
    """Group-relative advantages are divided by the group's standard deviation; False is Dr. GRPO (arXiv 2503.20783)."""
    critic_targets: CriticTargets = "monte_carlo"
    """What the critic regresses: "monte_carlo" returns of finished episodes, their "lambda_returns" with
    `critic_lambda`, or "also_truncated": Monte-Carlo returns, and A_t + V(s_t) on the windows of unfinished ones."""
    critic_lambda: float = 1.0
    """Decay of the critic's lambda-returns."""
    value_batch_tokens: int | None = None
    """Finished episodes are held until they have that many response tokens per learner, then all are trained; None
    trains the critic in every update on what finished."""
    clip_low: float = 0.2
    """The ratio's gradient stops below 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio's gradient stops above 1 + clip_high."""
    dual_clip: float | None = None
    """Where the advantage is negative the loss is at most -dual_clip * A (arXiv 1912.09729); None: no such bound."""
    loss_mean: Literal["token", "response"] = "token"
    """Over all tokens of a minibatch (DAPO, arXiv 2503.14476), or over responses, each the mean of its tokens (GRPO)."""
    value_clip: float | None = None
    """Most that a value may move from the one before the update without a larger loss (PPO2); None: unbounded."""
    entropy_coef: float = 0.0
    """Weight of the entropy (nats per token) that is added to what the policy maximises."""
    kl_coef: float = 0.0
    """Weight of the KL divergence to the reference model; 0 loads none."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of that divergence per token."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Whether it is a term of the loss or taken off the rewards."""
    positive_lm_coef: float = 0.0
    """Weight of the language-modelling loss on responses that were right (arXiv 2504.05118: 0.1)."""
    temperature: float = 1.0
    """Sampling temperature of the env-runners; the trainer's log-probs use the same."""
    off_policy_correction: OffPolicyCorrection = "behaviour"
    """Old log-probs of the ratio: "behaviour" takes those of the engine that sampled the token, so the clip also bounds
    staleness; the others recompute them with the weights before the update. "none" then treats stale tokens as fresh,
    "decoupled" weighs each token by old / behaviour (arXiv 2505.24298), "truncated_importance" by at most
    `importance_cap` of it."""
    importance_cap: float = 2.0
    """Largest importance weight of a token, for "truncated_importance" and hindsight."""
    sequence_mask: tuple[float, float] | None = None
    """Fragments whose geometric mean of importance weights (before the update) lies outside of these bounds add nothing
    to the surrogate; None masks none."""
    policy_token_share: float = 1.0
    """Share of the window tokens that the policy trains, in fragments drawn by a bound on their gradient and weighted with
    one over their chance (arXiv 1803.00942): the expected gradient is the same; 1 trains all."""
    num_epochs: int = 1
    """Passes of the policy over the batch."""
    minibatch_size: int | None = None
    """Sampled tokens per policy optimizer step and learner; None takes the whole batch in one step."""
    critic_num_epochs: int = 1
    """Passes of the critic over the value batch (all response tokens of the episodes that finished)."""
    critic_minibatch_size: int | None = None
    """Response tokens per critic optimizer step and learner; None takes the whole value batch in one step."""
    micro_batch_tokens: int = 2048
    """Most tokens in one forward pass, padding included. A sequence that is longer goes alone."""
    packing: bool = False
    """Sequences of a micro-batch stand in one row without padding; needs an attention kernel for variable lengths."""
    context_gradient: bool = True
    """Whether the policy's gradient goes through keys and values of prompt and earlier windows (see `contexts`)."""
    context_cache_tokens: int = 0
    """Tokens of open episodes whose keys and values a learner keeps from update to update (see `context_cache`)."""
    lr: LearningRate = 1e-6
    """Learning rate of the policy: a number, or a schedule over the tokens trained (see `schedules`)."""
    critic_lr: LearningRate = 2e-6
    """Learning rate of the critic, likewise."""
    lr_warmup_updates: int = 0
    """Updates over which the policy's learning rate rises linearly to `lr`, counted after the critic's warm-up."""
    critic_warmup_updates: int = 0
    """The policy is frozen while its version is below this, so that the critic learns first."""
    adam_betas: tuple[float, float] = (0.9, 0.99)
    """Decay rates of AdamW's first and second moments, of both models."""
    weight_decay: float = 0.0
    """AdamW's decoupled weight decay, of both models."""
    grad_clip: float | None = 1.0
    """Largest global norm of the policy's gradient; None never clips."""
    critic_grad_clip: float | None = 1.0
    """Largest global norm of the critic's gradient; None never clips."""
    parallel_critic: bool = False
    """Whether the critic trains in a thread of its own, while the policy does: with one learner, on a CPU."""
    seed: int | None = None
    """Seed of the shuffling into minibatches; None is 0."""
    distributed: Distributed = "ddp"
    """What several learners hold: "ddp" all weights each, "fsdp" slices of weights, gradients and moments."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        _require(0 < self.gamma <= 1, "gamma", self.gamma, "give a discount in (0, 1]")
        adaptive = self.lambda_ == LENGTH_ADAPTIVE
        _require(
            adaptive or (isinstance(self.lambda_, int | float) and 0 <= self.lambda_ <= 1),
            "lambda_",
            self.lambda_,
            "give a decay in [0, 1], or 'length_adaptive'",
        )
        for key, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal:
                choices = get_args(hint)
                _require(getattr(self, key) in choices, key, getattr(self, key), f"use one of {', '.join(choices)}")
        _require(0 <= self.critic_lambda <= 1, "critic_lambda", self.critic_lambda, "give a decay in [0, 1]")
        _require(0 <= self.clip_low <= 1, "clip_low", self.clip_low, "the ratio's lower bound is 1 - clip_low >= 0")
        _require(self.clip_high >= 0, "clip_high", self.clip_high, "the ratio's upper bound is 1 + clip_high")
        _require(self.temperature > 0, "temperature", self.temperature, "train on sampled, not on greedy tokens")
        _require(self.dual_clip is None or self.dual_clip > 1, "dual_clip", self.dual_clip, "give a number above 1")
        for key in ("lambda_alpha", "importance_cap"):
            _require(getattr(self, key) > 0, key, getattr(self, key), "give a number above 0")
        _require(self.value_clip is None or self.value_clip > 0, "value_clip", self.value_clip, "give a number above 0")
        if self.sequence_mask is not None:
            object.__setattr__(self, "sequence_mask", tuple(self.sequence_mask))
            low, high = self.sequence_mask
            _require(0 <= low < high, "sequence_mask", self.sequence_mask, "give bounds 0 <= low < high")
        scale = self.unfinished_advantage_scale
        _require(0 <= scale <= 1, "unfinished_advantage_scale", scale, "give a factor in [0, 1]; 1 is the paper's")
        share = self.policy_token_share
        _require(0 < share <= 1, "policy_token_share", share, "give a share in (0, 1]; 1 trains all tokens")
        for key in ("num_epochs", "critic_num_epochs", "micro_batch_tokens"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "give at least 1")
        for key in ("minibatch_size", "critic_minibatch_size", "value_batch_tokens"):
            size = getattr(self, key)
            _require(size is None or size >= 1, key, size, "give a number of tokens, or None for the whole batch")
        _require(self.context_cache_tokens >= 0, "context_cache_tokens", self.context_cache_tokens, "give at least 0")
        for key in ("lr", "critic_lr"):
            problem = fault(getattr(self, key))
            _require(problem is None, key, getattr(self, key), problem or "")
        for key in ("weight_decay", "lr_warmup_updates", "critic_warmup_updates", *_COEFFICIENTS):
            value = getattr(self, key)
            _require(isinstance(value, int | float) and value >= 0, key, value, "give a number, at least 0")
        for key in ("grad_clip", "critic_grad_clip"):
            norm = getattr(self, key)
            _require(norm is None or norm > 0, key, norm, "give a positive norm, or None to never clip")
        betas = self.adam_betas
        _require(
            len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "adam_betas", betas, "give two numbers in [0, 1)"
        )

    @property
    def recomputes_log_probs(self) -> bool:
        """Whether an extra forward pass gives the log-probs under the weights before the update."""
        return self.off_policy_correction != "behaviour" or self.sequence_mask is not None

    @classmethod
    def from_config(cls, config: Any) -> UpdateSettings:
        """Reads the settings from attributes of the same names; `temperature` from `config.sampling["temperature"]`.

        Raises:
            ValueError: an attribute is missing, or its value does not do.
        """
        values = {}
        for name in (field.name for field in fields(cls)):
            if name == "temperature":
                values[name] = config.sampling["temperature"]
            elif hasattr(config, name):
                values[name] = getattr(config, name)
            else:
                raise ValueError(f"the config has no attribute {name!r}: use a config class that defines it")
        return cls(**values)


_COEFFICIENTS = ("entropy_coef", "kl_coef", "positive_lm_coef")


def _require(holds: bool, key: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{key}={value!r} will not do: {remedy}")
