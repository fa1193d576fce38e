"""The critic's part of an update: regression on the value batch."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import last_positions
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.memory_limit import MicroBatchLimit
from tppo_rl.learner.metric_sums import MetricSums
from tppo_rl.learner.micro_batches import micro_batches, minibatches, num_minibatches
from tppo_rl.learner.models import Critic
from tppo_rl.learner.optimizers import GradientStep, StepReport
from tppo_rl.learner.packing import model_input
from tppo_rl.learner.sharding import ShardedGradientStep, same_number_of_passes
from tppo_rl.learner.targets import ValueBatch
from tppo_rl.maths.reduce import token_mean
from tppo_rl.maths.value import clipped_value_loss

CRITIC_SUMS = ("value_loss_sum", "critic_passes")
"""Sums that the critic's part adds to `metric_sums`."""


class CriticStep:
    """Trains the critic on the value batch: whole responses of finished episodes, unless the options say otherwise."""

    def __init__(
        self,
        critic: Critic,
        step: GradientStep | ShardedGradientStep,
        options: Options,
        collective: Collective,
        limit: MicroBatchLimit,
    ) -> None:
        self._limit = limit
        self._critic = critic
        self._step = step
        self._options = options
        self._collective = collective

    def run(
        self,
        value_batch: ValueBatch,
        *,
        global_tokens: int,
        lr: float,
        generator: np.random.Generator,
        metric_sums: MetricSums,
    ) -> list[StepReport]:
        """Makes `critic_num_epochs` passes over the value batch, one optimizer step per minibatch.

        Returns one report for each optimizer step, the same on all learners; none if all value batches are empty.

        Args:
            value_batch: This learner's shard; it may have no rows.
            global_tokens: Number of tokens of the value batch on all learners.
            lr: Learning rate of the update.
            generator: Shuffles episodes into minibatches.
            metric_sums: Receives `CRITIC_SUMS`.
        """
        options = self._options
        num_parts = num_minibatches(global_tokens, options.critic.critic_minibatch_size, self._collective.size)
        reports: list[StepReport] = []
        lengths, positions = value_batch.tokens.lengths, last_positions(value_batch.tokens)
        for _ in range(options.critic.critic_num_epochs):
            parts = minibatches(lengths, num_parts, generator)
            counts = torch.tensor([int(lengths[rows].sum()) for rows in parts], dtype=torch.int64)
            for rows, count in zip(parts, self._collective.sum_(counts).tolist(), strict=True):
                if count:
                    minibatch = partial(self._accumulate, value_batch, rows, count, metric_sums)
                    longest = int(positions[rows].max()) if len(rows) else 0
                    self._limit.compute(minibatch, longest=longest, metric_sums=metric_sums)
                    reports.append(self._step.apply(lr))
        return reports

    def _accumulate(
        self, value_batch: ValueBatch, rows: torch.Tensor, global_count: int, metric_sums: MetricSums
    ) -> None:
        """Adds up the gradient of one minibatch's mean token loss over this learner's micro-batches."""
        self._step.zero()
        device, tokens = self._critic.device, value_batch.tokens
        lengths = last_positions(tokens)
        packing = self._options.compute.packing
        groups = micro_batches(lengths, rows, self._limit.tokens, packing=packing).rows
        for group in same_number_of_passes(self._critic, groups):
            mask = tokens.mask[group]
            inputs = model_input(value_batch.batch, value_batch.rows[group], lengths[group], device, packing=packing)
            states = inputs.places(mask.nonzero()[:, 0], tokens.positions[group][mask])
            outputs = self._critic(inputs.input_ids, inputs.position_ids, outputs=True)[states]
            targets = value_batch.targets[group][mask].to(device)
            if self._options.critic.value_clip is None:
                loss = self._critic.form.loss(outputs, targets)
            else:
                assert value_batch.old_values is not None, "the value clip needs the values before the update"
                old_values = value_batch.old_values[group][mask].to(device)
                values = self._critic.form.values(outputs)
                loss = clipped_value_loss(values, old_values, targets, clip=self._options.critic.value_clip)
            self._step.backward(token_mean(loss, global_count))
            metric_sums.add("value_loss_sum", loss)
            metric_sums.add("critic_passes", len(loss))
