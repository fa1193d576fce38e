"""What sampling a token costs in each mode, in a run that has gone on for long. Slots M, response length L, prompt P.

T-PPO   every slot is busy: M tokens a step; a slot reads P + E[L (L + 1) / 2] / E[L] tokens on average, for a step
        finds a response of length L with a probability in proportion to L; M P / E[L] prompt tokens a step
PPO     one response for each slot: at step t there are M P(L > t) in generation on average, and the step is made
        while the longest goes on, P(max > t) = 1 - P(L <= t)^M; E[max] steps in all, occupancy E[L] / E[max]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tppo_rl.plan.costs import EngineCost
from tppo_rl.plan.lengths import ResponseLengths
from tppo_rl.plan.roofline import ModelShape
from tppo_rl.plan.windows import Mode


@dataclass(frozen=True)
class Generation:
    """Of one env-runner."""

    occupancy: float
    """Share of slot-steps that sample a token."""
    tokens_per_step: float
    seconds_per_token: float
    """Without what new weights cost."""
    held_tokens: float
    """Tokens that all slots hold when new weights come: what is recomputed then."""
    intensity: float
    """Operations for each byte that decoding moves."""


def generation(
    lengths: ResponseLengths,
    mode: Mode,
    *,
    slots: int,
    prompt_length: float,
    cost: EngineCost,
    shape: ModelShape,
    env_runners: int = 1,
) -> Generation:
    """Returns the cost of sampling.

    Args:
        lengths: Of responses.
        mode: Key of `MODES`; windows make no difference here.
        slots: Of one env-runner.
        prompt_length: Mean, tokens.
        cost: Of a step.
        shape: Of the policy.
        env_runners: That wait for one another's longest response with "ppo".
    """
    if mode == "ppo":
        return _whole_responses(lengths, slots, prompt_length, cost, shape, env_runners)
    positions = np.arange(lengths.longest + 1)
    context = slots * (prompt_length + lengths.expected(positions * (positions + 1) / 2) / lengths.mean)
    seconds = float(cost.seconds(slots, context, slots * prompt_length / lengths.mean))
    intensity = shape.operations(slots, context) / shape.bytes_read(context)
    return Generation(1.0, float(slots), seconds / slots, context, intensity)


def _whole_responses(
    lengths: ResponseLengths,
    slots: int,
    prompt_length: float,
    cost: EngineCost,
    shape: ModelShape,
    env_runners: int,
) -> Generation:
    made = lengths.any_longer(slots * env_runners)
    made, survival = made[made > 0], lengths.survival[made > 0]
    steps, tokens = float(made.sum()), slots * lengths.mean
    running = slots * survival / made
    context = running * (prompt_length + np.arange(1, len(running) + 1))
    prompts = np.zeros(len(running))
    prompts[0] = slots * prompt_length
    seconds = float(made @ cost.seconds(running, context, prompts))
    operations = float(made @ shape.operations(running, context))
    intensity = operations / float(made @ shape.bytes_read(context))
    return Generation(tokens / (slots * steps), tokens / steps, seconds / tokens, 0.0, intensity)
