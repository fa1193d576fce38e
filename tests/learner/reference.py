"""The update's losses once more, as plainly as can be: one sequence and one token at a time, float64, no padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tppo_rl.fragments import Fragment
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.settings import UpdateSettings


def advantages(critic: Critic, fragment: Fragment, settings: UpdateSettings) -> list[float]:
    """Extended GAE of one fragment by its definition."""
    sequence, first = _sequence(fragment), len(fragment.context)
    with torch.no_grad():
        values = critic(sequence[None])[0].tolist()
    where = [first + int(index) for index in np.flatnonzero(fragment.sampled)]
    states = [values[position - 1] for position in where]
    boundary = {"hold": states[-1], "bootstrap": values[-1]}[settings.boundary_value]
    following = [*states[1:], 0.0 if fragment.finished else boundary]
    rewards = [float(reward) for reward in fragment.rewards[fragment.sampled.astype(bool)]]
    deltas = [r + settings.gamma * n - v for r, n, v in zip(rewards, following, states, strict=True)]
    decay = settings.gamma * settings.lambda_
    return [sum(decay**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


def policy_loss(
    policy: Policy, critic: Critic, fragments: Sequence[Fragment], settings: UpdateSettings
) -> torch.Tensor:
    """Mean clipped surrogate over all window tokens of all fragments."""
    losses = []
    for fragment in fragments:
        sequence, first = _sequence(fragment), len(fragment.context)
        logits = policy.model(input_ids=sequence[None]).logits[0] / settings.temperature
        weights = iter(advantages(critic, fragment, settings))
        for index in np.flatnonzero(fragment.sampled).tolist():
            position = first + index
            log_probs = logits[position - 1] - logits[position - 1].logsumexp(dim=0)
            ratio = torch.exp(log_probs[sequence[position]] - float(fragment.behaviour_log_probs[index]))
            advantage = next(weights)
            too_low = float(ratio.detach()) < 1 - settings.clip_low and advantage < 0
            too_high = float(ratio.detach()) > 1 + settings.clip_high and advantage > 0
            bound = 1 - settings.clip_low if too_low else 1 + settings.clip_high
            losses.append(torch.full_like(ratio, -bound * advantage) if too_low or too_high else -ratio * advantage)
    return torch.stack(losses).mean()


def value_loss(critic: Critic, fragments: Sequence[Fragment], settings: UpdateSettings) -> torch.Tensor:
    """Mean squared error against the Monte-Carlo return over all response tokens of finished episodes."""
    losses = []
    for fragment in fragments:
        if not fragment.finished:
            continue
        values = critic(_sequence(fragment)[None])[0]
        sampled = np.r_[fragment.context_sampled, fragment.sampled]
        rewards = np.r_[fragment.context_rewards, fragment.rewards]
        positions = np.flatnonzero(sampled).tolist()
        for place, position in enumerate(positions):
            target = sum(settings.gamma**k * float(rewards[later]) for k, later in enumerate(positions[place:]))
            losses.append(0.5 * (values[position - 1] - target) ** 2)
    return torch.stack(losses).mean()


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """The loss's gradient as one vector."""
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])


def _sequence(fragment: Fragment) -> torch.Tensor:
    return torch.from_numpy(np.r_[fragment.context, fragment.tokens].astype(np.int64))
