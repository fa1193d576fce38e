"""What is computed before the first optimizer step, in stages: values, advantages, what the critic regresses.

    fragments ─▶ [reference KL] ─▶ [critic start] ─▶ [values] ─▶ advantages ─▶ [normalization] ─▶ [value batch] ─▶ Targets

Stages in brackets are there where the options ask for them; without a critic there are neither values nor a value batch. A
stage fills in its part of `Estimates`. Learners run the stages as RLlib connectors (`tppo_rl.learner.connectors`), so that one
can be exchanged; `estimate` runs them without RLlib.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch

from tppo_rl.config.options import Options
from tppo_rl.config.sections.advantages import AUTO
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.registry import ADVANTAGES
from tppo_rl.learner.advantages import normalized_advantages, scale_unfinished
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments
from tppo_rl.learner.collective import Collective, SingleLearner
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.critic_start import initial_value, is_cold, start_critic
from tppo_rl.learner.known_answers import with_answers
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.sampled_log_probs import sampled_log_probs, with_kl_rewards
from tppo_rl.learner.value_batches import (
    ValueBatch,
    finished_returns,
    include_unfinished_batch,
    lambda_return_batch,
    monte_carlo_batch,
)
from tppo_rl.learner.value_buffer import ValueBuffer
from tppo_rl.learner.values import CriticValues, critic_values


@dataclass(frozen=True, eq=False)
class Targets:
    """Everything that the losses regress or weigh by."""

    advantages: torch.Tensor
    """float32 [B, T]: A_t of the window's tokens; padding 0."""
    values: CriticValues | None = None
    """None without a critic."""
    value_batch: ValueBatch | None = None
    """None without a critic."""
    reference_log_probs: torch.Tensor | None = None
    """float32 [B, T], nats: the reference model's log-prob of the window's tokens; None without a KL term in the loss."""
    left_out: torch.Tensor | None = None
    """float32 [B, T]: what `unfinished_advantage_scale` left out of the advantages, before their normalization; None without hindsight."""
    seconds: float = 0.0
    """Time that it took."""


class Models(Protocol):
    """What stages evaluate; `LanguageModelModule` is one."""

    @property
    def policy(self) -> Policy: ...

    @property
    def critic(self) -> Critic | None: ...

    @property
    def reference(self) -> Policy | None: ...


class ModelSet(NamedTuple):
    """Models that no module holds."""

    policy: Policy
    critic: Critic | None = None
    reference: Policy | None = None


@dataclass(eq=False)
class Estimates:
    """What the stages have found out so far; the fields are those of `Targets`."""

    batch: TrainBatch
    fragments: Sequence[Fragment]
    advantages: torch.Tensor | None = None
    values: CriticValues | None = None
    value_batch: ValueBatch | None = None
    reference_log_probs: torch.Tensor | None = None
    left_out: torch.Tensor | None = None

    def targets(self, seconds: float = 0.0) -> Targets:
        """The result.

        Raises:
            ValueError: no stage has estimated advantages.
        """
        if self.advantages is None:
            raise ValueError("no stage of the learner pipeline gives advantages: add one that does")
        return Targets(self.advantages, self.values, self.value_batch, self.reference_log_probs, self.left_out, seconds)


Stage = Callable[[Estimates, Models], None]
"""Changes the estimates in place."""


def default_stages(
    options: Options,
    *,
    critic: bool = True,
    collective: Collective | None = None,
    value_buffer: ValueBuffer | None = None,
    cache: ContextCache | None = None,
    unfinished_scale: Callable[[], float] | None = None,
) -> dict[str, Stage]:
    """The stages that the options ask for, by name, in order.

    Args:
        options: What the stages read.
        critic: Whether the module has a critic.
        collective: The other learners; None means that there are none.
        value_buffer: Holds finished episodes until the critic's batch is full; None trains them at once.
        cache: Keeps the critic's contexts from update to update; None computes them anew.
        unfinished_scale: Gives the factor on advantages of unfinished windows, where `unfinished_advantage_scale` is "auto"; None: 1.
    """
    stages: dict[str, Stage] = {}
    if options.policy_loss.kl_coef:
        stages["reference_kl"] = _kl_rewards(options) if options.policy_loss.has_kl_in_rewards else _reference(options)
    if critic:
        stages["critic_start"] = _critic_start(options, collective or SingleLearner())
        stages["values"] = _values(options, cache)
    stages["advantages"] = _advantages(options, unfinished_scale)
    if options.advantages.advantage_normalization != "none":
        stages["advantage_normalization"] = _normalization(options, collective or SingleLearner())
    if critic:
        stages["value_batch"] = _value_batch(options, value_buffer)
    return stages


def estimate(
    models: Models,
    batch: TrainBatch,
    options: Options,
    *,
    fragments: Sequence[Fragment] = (),
    collective: Collective | None = None,
    value_buffer: ValueBuffer | None = None,
    cache: ContextCache | None = None,
) -> tuple[TrainBatch, Targets]:
    """Runs the default stages on a batch, without RLlib; returns the batch, of which they may have changed the rewards, too.

    Args:
        models: What the stages evaluate.
        batch: The fragments as tensors.
        options: What the stages read.
        fragments: The same fragments, for stages that hold them (`value_buffer`).
        collective: See `default_stages`, as the rest.
    """
    start = time.perf_counter()
    estimates = Estimates(batch, fragments)
    stages = default_stages(
        options,
        critic=models.critic is not None,
        collective=collective,
        value_buffer=value_buffer,
        cache=cache,
    )
    for stage in stages.values():
        stage(estimates, models)
    return estimates.batch, estimates.targets(time.perf_counter() - start)


def _kl_rewards(options: Options) -> Stage:
    """Takes the divergence from the reference model off the rewards."""

    def stage(estimates: Estimates, models: Models) -> None:
        assert models.reference is not None
        estimates.batch = with_kl_rewards(estimates.batch, models.policy, models.reference, options)

    return stage


def _reference(options: Options) -> Stage:
    """Prepares the divergence from the reference model as a term of the loss."""

    def stage(estimates: Estimates, models: Models) -> None:
        assert models.reference is not None
        estimates.reference_log_probs = sampled_log_probs(
            models.reference,
            estimates.batch,
            estimates.batch.window,
            temperature=options.rollout.sampling.temperature,
            micro_batch_tokens=options.compute.micro_batch_tokens,
            packing=options.compute.packing,
        )

    return stage


def _critic_start(options: Options, collective: Collective) -> Stage:
    """Sets a cold critic's value to the mean of the first returns."""
    started = False

    def stage(estimates: Estimates, models: Models) -> None:
        nonlocal started
        assert models.critic is not None
        if started:
            return
        returns = finished_returns(estimates.batch, options)[estimates.batch.response.mask]
        started = not is_cold(models.critic, collective) or start_critic(
            models.critic, returns, initial_value(models.critic, options), collective
        )

    return stage


def _values(options: Options, cache: ContextCache | None) -> Stage:
    """Evaluates the critic on every state of the batch."""

    def stage(estimates: Estimates, models: Models) -> None:
        assert models.critic is not None
        estimates.values = critic_values(
            models.critic,
            critic_view(estimates.batch, options),
            options.compute.micro_batch_tokens,
            packing=options.compute.packing,
            cache=cache,
        )

    return stage


def critic_view(batch: TrainBatch, options: Options) -> TrainBatch:
    """Returns the batch as the critic reads it, with the same sampled tokens in the same rows."""
    return with_answers(batch) if options.critic.critic_sees_answer else batch


def _advantages(options: Options, unfinished_scale: Callable[[], float] | None) -> Stage:
    """Estimates the policy's advantages, and weighs those of unfinished windows."""
    given, hindsight = options.advantages.unfinished_advantage_scale, options.advantages.hindsight
    estimator = ADVANTAGES.resolve(options.advantages.advantage_estimator)

    def stage(estimates: Estimates, models: Models) -> None:
        advantages = estimator(estimates.batch, estimates.values, options)
        expected = estimates.batch.window.tokens.shape
        if not isinstance(advantages, torch.Tensor) or advantages.shape != expected:
            found = tuple(advantages.shape) if isinstance(advantages, torch.Tensor) else type(advantages).__name__
            raise ValueError(
                f"advantage_estimator={options.advantages.advantage_estimator.name!r}: must return a tensor of the window's "
                f"shape {tuple(expected)}, got {found}"
            )
        scale = given if given != AUTO else 1.0 if unfinished_scale is None else unfinished_scale()
        estimates.advantages = scale_unfinished(advantages, estimates.batch, float(scale))
        if hindsight:
            estimates.left_out = advantages - estimates.advantages

    return stage


def _normalization(options: Options, collective: Collective) -> Stage:
    """Whitens or scales advantages over the batch of all learners, or over groups."""

    def stage(estimates: Estimates, models: Models) -> None:
        assert estimates.advantages is not None
        estimates.advantages = normalized_advantages(estimates.batch, estimates.advantages, options, collective)

    return stage


_VALUE_BATCHES: dict[str, Callable[[TrainBatch, Any, Options], ValueBatch]] = {
    "monte_carlo": monte_carlo_batch,
    "lambda_returns": lambda_return_batch,
    "include_unfinished": include_unfinished_batch,
}


def _value_batch(options: Options, value_buffer: ValueBuffer | None) -> Stage:
    """Gives the critic what it regresses; with a buffer nothing until enough episodes have finished."""
    make = _VALUE_BATCHES[options.critic.critic_targets]

    def stage(estimates: Estimates, models: Models) -> None:
        if value_buffer is None:
            estimates.value_batch = make(critic_view(estimates.batch, options), estimates.values, options)
        else:
            released = batch_from_fragments(value_buffer.exchange(estimates.fragments))
            estimates.value_batch = monte_carlo_batch(critic_view(released, options), None, options)

    return stage
