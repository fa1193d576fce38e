"""What an engine step and a learner's pass cost on a machine.

    engine step     base + per_sequence * running + per_context_token * keys and values read + per_prompt_token * prefilled
    learner's pass  base + per_sequence * sequences + per_position * positions + per_pair * squared lengths

Fitted to measurements in `tppo_rl.plan.fits`, read from files in `tppo_rl.plan.cost_files`, and of GPUs that are not here in
`tppo_rl.plan.roofline`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.windows import LearnerWork, PassWork


class EngineCost(Protocol):
    """Seconds of an engine's work; arguments may be arrays of one shape."""

    @property
    def weight_update(self) -> float:
        """Seconds that an engine stands still for new weights, without recomputing what its requests hold."""

    @property
    def room(self) -> float:
        """Tokens whose keys and values the engine's memory holds; infinite where it is not known."""

    def seconds(self, running: Any, context_tokens: Any, prompt_tokens: Any) -> Any:
        """Returns seconds of a step.

        Args:
            running: Sequences that get a token each.
            context_tokens: Tokens of all of them whose keys and values are read.
            prompt_tokens: Tokens that are prefilled in the step.
        """


class LearnerCost(Protocol):
    """Seconds of an update."""

    def seconds(self, work: LearnerWork, updates: float) -> float:
        """Returns seconds of some updates.

        Args:
            work: Of all of them.
            updates: How many; may be a share of one.
        """


@dataclass(frozen=True)
class AffineEngineCost:
    """A measured step-cost curve, seconds."""

    base: float = 0.0
    per_sequence: float = 0.0
    per_context_token: float = 0.0
    per_prompt_token: float = 0.0
    weight_update: float = 0.0

    @property
    def room(self) -> float:
        return math.inf

    def seconds(self, running: Any, context_tokens: Any, prompt_tokens: Any) -> Any:
        return (
            self.base
            + self.per_sequence * running
            + self.per_context_token * context_tokens
            + self.per_prompt_token * prompt_tokens
        )


@dataclass(frozen=True)
class PassCost:
    """A measured pass, seconds."""

    base: float = 0.0
    per_sequence: float = 0.0
    per_position: float = 0.0
    per_pair: float = 0.0

    def seconds(self, work: PassWork, passes: float) -> float:
        return (
            self.base * passes
            + self.per_sequence * work.sequences
            + self.per_position * work.positions
            + self.per_pair * work.pairs
        )


@dataclass(frozen=True)
class MeasuredLearnerCost:
    """A learner's measured passes; epochs are in the work."""

    values: PassCost = PassCost()
    policy: PassCost = PassCost()
    critic: PassCost = PassCost()
    rest: PassCost = PassCost()
    """What else an update does with the fragments: batches, advantages, metrics."""

    def seconds(self, work: LearnerWork, updates: float) -> float:
        return (
            self.values.seconds(work.values, updates)
            + self.policy.seconds(work.policy, updates)
            + self.critic.seconds(work.critic, updates)
            + self.rest.seconds(work.values, updates)
        )


@dataclass(frozen=True)
class Costs:
    """Both sides of a machine's cost."""

    engine: EngineCost
    learner: LearnerCost
    source: str
    """What they are of, for tables."""


ONE_CORE = Costs(
    AffineEngineCost(1.46e-3, 7.71e-5, 0.0, 1.71e-5, 1.34e-2),
    MeasuredLearnerCost(
        values=PassCost(9.3e-3, 1.8e-5, 1.88e-5, 1.77e-8),
        policy=PassCost(2.91e-2, 0.0, 6.48e-5, 5.28e-8),
        critic=PassCost(8.2e-3, 1.21e-4, 6.19e-5, 7.07e-8),
        rest=PassCost(2.9e-3, 0.0, 6.2e-7, 0.0),
    ),
    "one core",
)
"""The shipped model in float32, by `tppo-rl bench plan` on one core of an AMD EPYC."""


def learner_of_speed(tokens_per_second: float) -> MeasuredLearnerCost:
    """Returns the passes of a learner that trains so many positions a second, forwards and backwards, in either model.

    Raises:
        OptionError: a speed that is not above 0.
    """
    if not tokens_per_second > 0:
        raise OptionError(f"learner_speed={tokens_per_second:g} will not do: give positions per second, above 0")
    return forward_and_backward(1 / tokens_per_second / 3, 0.0)


def forward_and_backward(per_position: float, per_pair: float) -> MeasuredLearnerCost:
    """Returns the passes of two models of one shape, given seconds of a forward pass; a backward pass costs twice that."""
    forward = PassCost(per_position=per_position, per_pair=per_pair)
    both = PassCost(per_position=3 * per_position, per_pair=3 * per_pair)
    return MeasuredLearnerCost(values=forward, policy=both, critic=both)
