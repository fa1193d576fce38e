"""The update's losses once more, as plainly as can be: one sequence and one token at a time, float64, no padding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.models import Critic, Policy


def advantages(critic: Critic, fragment: Fragment, options: Options) -> list[float]:
    """Extended GAE of one fragment as the mix of its k-step estimators; in hindsight, what the residual adds."""
    states, after, rewards = _states(critic, fragment)
    gamma, lambda_ = options.advantages.gamma, _lambda(fragment, options)
    boundary = 0.0 if fragment.finished else states[-1] if options.advantages.boundary_value == "hold" else after
    if fragment.hindsight_residual is not None:
        states, rewards, boundary = [0.0] * len(states), [0.0] * len(states), fragment.hindsight_residual
    following = [*states[1:], boundary]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, states, strict=True)]
    result = []
    for t in range(len(deltas)):
        steps = len(deltas) - t
        estimators = [sum(gamma**i * deltas[t + i] for i in range(k)) for k in range(1, steps + 1)]
        weights = [lambda_ ** (k - 1) for k in range(1, steps + 1)]
        if fragment.finished or options.advantages.boundary_value != "tail_corrected":
            # All weight beyond the last step lies on the longest estimator.
            weights = [(1 - lambda_) * weight for weight in weights[:-1]] + [weights[-1]]
        result.append(sum(w * a for w, a in zip(weights, estimators, strict=True)) / sum(weights))
    if not fragment.finished and fragment.hindsight_residual is None:
        result = [options.advantages.unfinished_advantage_scale * advantage for advantage in result]
    if fragment.hindsight_residual is not None and len(fragment.left_out_advantages):
        result = [advantage + float(more) for advantage, more in zip(result, fragment.left_out_advantages, strict=True)]
    return result


def policy_loss(
    policy: Policy,
    critic: Critic,
    fragments: Sequence[Fragment],
    options: Options,
    reference_model: Policy | None = None,
) -> torch.Tensor:
    """The whole loss of the policy's first step over all fragments."""
    losses, weights, imitation = [], [], []
    for fragment in fragments:
        logits = _log_softmax(policy, fragment, options)
        places = (len(fragment.context) + np.flatnonzero(fragment.sampled)).tolist()
        sequence = _sequence(fragment)
        log_probs = [logits[place - 1, sequence[place]] for place in places]
        behavior = fragment.behavior_log_probs[fragment.sampled.astype(bool)].tolist()
        current = [float(value.detach()) for value in log_probs]
        kept = True
        if options.policy_loss.sequence_mask is not None and fragment.hindsight_residual is None:
            mean_weight = np.exp(np.mean(np.subtract(current, behavior)))
            kept = options.policy_loss.sequence_mask[0] <= mean_weight <= options.policy_loss.sequence_mask[1]
        for place, log_prob, mu, now, advantage in zip(
            places, log_probs, behavior, current, advantages(critic, fragment, options), strict=True
        ):
            if fragment.hindsight_residual is not None:
                loss = -min(np.exp(now - mu), options.policy_loss.importance_cap) * advantage * log_prob
            elif options.policy_loss.off_policy_correction == "behavior":
                loss = _surrogate(log_prob, mu, advantage, options)
            else:
                weight = 1.0 if options.policy_loss.off_policy_correction == "none" else np.exp(now - mu)
                if options.policy_loss.off_policy_correction == "truncated_importance":
                    weight = min(weight, options.policy_loss.importance_cap)
                loss = weight * _surrogate(log_prob, now, advantage, options)
            if not kept:
                loss = 0.0 * log_prob
            if reference_model is not None:
                with torch.no_grad():
                    theirs = _log_softmax(reference_model, fragment, options)[place - 1, sequence[place]]
                loss = loss + options.policy_loss.kl_coef * _divergence(
                    log_prob, theirs, options.policy_loss.kl_estimator
                )
            distribution = logits[place - 1]
            loss = loss + options.policy_loss.entropy_coef * (distribution.exp() * distribution).sum()
            losses.append(loss)
            weights.append(1 / len(places) if options.policy_loss.loss_aggregation == "response" else 1.0)
        if fragment.finished and fragment.correct:
            sampled = np.r_[fragment.context_sampled, fragment.sampled]
            imitation += [-logits[place - 1, sequence[place]] for place in np.flatnonzero(sampled).tolist()]
    mean = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    return mean + options.policy_loss.positive_lm_coef * torch.stack(imitation).mean() if imitation else mean


def value_loss(critic: Critic, fragments: Sequence[Fragment], options: Options) -> torch.Tensor:
    """Mean squared error against the targets of the options, over the tokens that they let the critic see."""
    losses = []
    for fragment in fragments:
        values = critic(_sequence(fragment)[None])[0]
        if fragment.finished:
            sampled = np.r_[fragment.context_sampled, fragment.sampled]
            rewards = np.r_[fragment.context_rewards, fragment.rewards]
            positions = np.flatnonzero(sampled).tolist()
            decay = options.critic.critic_lambda if options.critic.critic_targets == "lambda_returns" else 1.0
            targets = _lambda_returns(
                [float(rewards[position]) for position in positions],
                [float(values[position - 1].detach()) for position in positions],
                0.0,
                options.advantages.gamma,
                decay,
            )
        elif options.critic.critic_targets == "include_unfinished":
            states, after, window_rewards = _states(critic, fragment)
            positions = (len(fragment.context) + np.flatnonzero(fragment.sampled)).tolist()
            boundary = states[-1] if options.advantages.boundary_value == "hold" else after
            targets = _lambda_returns(
                window_rewards, states, boundary, options.advantages.gamma, options.critic.critic_lambda
            )
        else:
            continue
        for position, target in zip(positions, targets, strict=True):
            losses.append(0.5 * (values[position - 1] - target) ** 2)
    return torch.stack(losses).mean()


def gradient(loss: torch.Tensor, model: torch.nn.Module) -> torch.Tensor:
    """The loss's gradient as one vector."""
    return torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, list(model.parameters()))])


def _surrogate(log_prob: torch.Tensor, old: float, advantage: float, options: Options) -> torch.Tensor:
    ratio = torch.exp(log_prob - old)
    value = float(ratio.detach())
    if value < 1 - options.policy_loss.clip_low and advantage < 0:
        return torch.full_like(ratio, -(1 - options.policy_loss.clip_low) * advantage)
    if value > 1 + options.policy_loss.clip_high and advantage > 0:
        return torch.full_like(ratio, -(1 + options.policy_loss.clip_high) * advantage)
    if options.policy_loss.dual_clip is not None and advantage < 0 and value > options.policy_loss.dual_clip:
        return torch.full_like(ratio, -options.policy_loss.dual_clip * advantage)
    return -ratio * advantage


def _divergence(log_prob: torch.Tensor, reference: torch.Tensor, estimator: str) -> torch.Tensor:
    difference = reference - log_prob
    if estimator == "k1":
        return -difference
    return 0.5 * difference**2 if estimator == "k2" else torch.exp(difference) - difference - 1


def _lambda_returns(
    rewards: Sequence[float], values: Sequence[float], boundary: float, gamma: float, lambda_: float
) -> list[float]:
    """G_t = r_t + gamma * ((1 - lambda) V_(t+1) + lambda G_(t+1)), from the last token to the first."""
    following_value, following_return, result = boundary, boundary, []
    for reward, value in zip(reversed(rewards), reversed(values), strict=True):
        following_return = reward + gamma * ((1 - lambda_) * following_value + lambda_ * following_return)
        following_value = value
        result.append(following_return)
    return result[::-1]


def _states(critic: Critic, fragment: Fragment) -> tuple[list[float], float, list[float]]:
    """Values of the states before each sampled token of the window, the value after the last token, and the rewards."""
    with torch.no_grad():
        values = critic(_sequence(fragment)[None])[0].tolist()
    where = len(fragment.context) + np.flatnonzero(fragment.sampled)
    rewards = [float(reward) for reward in fragment.rewards[fragment.sampled.astype(bool)]]
    return [values[position - 1] for position in where.tolist()], values[-1], rewards


def _lambda(fragment: Fragment, options: Options) -> float:
    if options.advantages.lambda_ == "length_adaptive":
        length = int(fragment.context_sampled.sum()) + len(fragment)
        return max(0.0, 1 - 1 / (options.advantages.lambda_alpha * length))
    return float(options.advantages.lambda_)


def _log_softmax(policy: Policy, fragment: Fragment, options: Options) -> torch.Tensor:
    return (
        policy.model(input_ids=_sequence(fragment)[None]).logits[0] / options.rollout.sampling.temperature
    ).log_softmax(dim=-1)


def _sequence(fragment: Fragment) -> torch.Tensor:
    return torch.from_numpy(np.r_[fragment.context, fragment.tokens].astype(np.int64))
