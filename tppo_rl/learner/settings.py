"""Settings of the update step, checked where they are made."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from tppo_rl.maths.advantages import BoundaryValue

OffPolicyCorrection = Literal["behaviour", "none"]
Distributed = Literal["ddp", "fsdp"]


@dataclass(frozen=True)
class UpdateSettings:
    """Everything that decides how one batch of fragments becomes new weights. Batch sizes are per learner."""

    gamma: float = 1.0
    """Discount of each sampled token."""
    lambda_: float = 0.95
    """Decay of the policy's advantages (the critic's targets always use 1)."""
    boundary_value: BoundaryValue = "hold"
    """V(s_l) of an unfinished fragment: "hold" (V(s_{l-1}), the paper) or "bootstrap" (the critic's V(s_l))."""
    clip_low: float = 0.2
    """The ratio's gradient stops below 1 - clip_low."""
    clip_high: float = 0.28
    """The ratio's gradient stops above 1 + clip_high."""
    temperature: float = 1.0
    """Sampling temperature of the env-runners; the trainer's log-probs use the same."""
    off_policy_correction: OffPolicyCorrection = "behaviour"
    """Old log-probs of the ratio: "behaviour" takes those of the engine that sampled the token, so the clip also bounds
    staleness; "none" recomputes them with the weights before the update, which treats stale tokens as fresh."""
    num_epochs: int = 1
    """Passes of the policy over the batch."""
    minibatch_size: int | None = None
    """Sampled tokens per policy optimizer step and learner; None takes the whole batch in one step."""
    critic_num_epochs: int = 1
    """Passes of the critic over the value batch (all response tokens of the episodes that finished)."""
    critic_minibatch_size: int | None = None
    """Response tokens per critic optimizer step and learner; None takes the whole value batch in one step."""
    micro_batch_tokens: int = 2048
    """Most padded tokens in one forward pass. A sequence that is longer goes alone."""
    lr: float = 1e-6
    """Learning rate of the policy."""
    critic_lr: float = 2e-6
    """Learning rate of the critic."""
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
    seed: int | None = None
    """Seed of the shuffling into minibatches; None is 0."""
    distributed: Distributed = "ddp"
    """What several learners hold: "ddp" all weights each, "fsdp" slices of weights, gradients and moments."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "adam_betas", tuple(self.adam_betas))
        _require(0 < self.gamma <= 1, "gamma", self.gamma, "give a discount in (0, 1]")
        _require(0 <= self.lambda_ <= 1, "lambda_", self.lambda_, "give a decay in [0, 1]")
        _require(self.boundary_value in ("hold", "bootstrap"), "boundary_value", self.boundary_value, "hold/bootstrap")
        _require(0 <= self.clip_low <= 1, "clip_low", self.clip_low, "the ratio's lower bound is 1 - clip_low >= 0")
        _require(self.clip_high >= 0, "clip_high", self.clip_high, "the ratio's upper bound is 1 + clip_high")
        _require(self.temperature > 0, "temperature", self.temperature, "train on sampled, not on greedy tokens")
        _require(
            self.off_policy_correction in ("behaviour", "none"),
            "off_policy_correction",
            self.off_policy_correction,
            "use 'behaviour' or 'none'",
        )
        _require(self.distributed in ("ddp", "fsdp"), "distributed", self.distributed, "use 'ddp' or 'fsdp'")
        for key in ("num_epochs", "critic_num_epochs", "micro_batch_tokens"):
            _require(getattr(self, key) >= 1, key, getattr(self, key), "give at least 1")
        for key in ("minibatch_size", "critic_minibatch_size"):
            size = getattr(self, key)
            _require(size is None or size >= 1, key, size, "give a number of tokens, or None for the whole batch")
        for key in ("lr", "critic_lr", "weight_decay", "lr_warmup_updates", "critic_warmup_updates"):
            value = getattr(self, key)
            _require(isinstance(value, int | float) and value >= 0, key, value, "give a number, at least 0")
        for key in ("grad_clip", "critic_grad_clip"):
            norm = getattr(self, key)
            _require(norm is None or norm > 0, key, norm, "give a positive norm, or None to never clip")
        betas = self.adam_betas
        _require(
            len(betas) == 2 and all(0 <= beta < 1 for beta in betas), "adam_betas", betas, "give two numbers in [0, 1)"
        )

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


def _require(holds: bool, key: str, value: object, remedy: str) -> None:
    if not holds:
        raise ValueError(f"{key}={value!r} will not do: {remedy}")
