"""The critic's part of an update: Monte-Carlo returns of the episodes that finished, and of no others."""

from __future__ import annotations

import numpy as np
import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.micro_batches import micro_batches, minibatches, num_minibatches
from tppo_rl.learner.models import Critic
from tppo_rl.learner.optimizers import GradientStep, StepReport
from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.learner.sharding import ShardedGradientStep, same_number_of_passes
from tppo_rl.learner.tally import Tally
from tppo_rl.maths.reduce import token_mean
from tppo_rl.maths.value import value_loss

CRITIC_SUMS = ("value_loss_sum", "critic_passes")
"""Sums that the critic's part adds to the tally."""


class CriticStep:
    """Trains the critic on whole responses of finished episodes."""

    def __init__(
        self,
        critic: Critic,
        step: GradientStep | ShardedGradientStep,
        settings: UpdateSettings,
        collective: Collective,
    ) -> None:
        self._critic = critic
        self._step = step
        self._settings = settings
        self._collective = collective

    def run(
        self,
        batch: TrainBatch,
        value_targets: torch.Tensor,
        *,
        global_tokens: int,
        generator: np.random.Generator,
        tally: Tally,
    ) -> list[StepReport]:
        """Makes `critic_num_epochs` passes over the value batch, one optimizer step per minibatch.

        Returns one report for each optimizer step, the same on all learners; none where no episode has finished on any
        learner.

        Args:
            batch: This learner's share; may be without a finished episode.
            value_targets: float32 [F, R], G_t over the responses; padding is ignored.
            global_tokens: Response tokens of finished episodes on all learners.
            generator: Shuffles episodes into minibatches.
            tally: Receives `CRITIC_SUMS`.
        """
        settings = self._settings
        num_parts = num_minibatches(global_tokens, settings.critic_minibatch_size, self._collective.size)
        reports: list[StepReport] = []
        for _ in range(settings.critic_num_epochs):
            parts = minibatches(batch.response.lengths, num_parts, generator)
            counts = torch.tensor([int(batch.response.lengths[rows].sum()) for rows in parts], dtype=torch.int64)
            for rows, count in zip(parts, self._collective.sum_(counts).tolist(), strict=True):
                if count:
                    self._accumulate(batch, rows, value_targets, count, tally)
                    reports.append(self._step.apply(settings.critic_lr))
        return reports

    def _accumulate(
        self, batch: TrainBatch, rows: torch.Tensor, value_targets: torch.Tensor, global_count: int, tally: Tally
    ) -> None:
        """Adds up the gradient of one minibatch's mean token loss over this learner's micro-batches."""
        self._step.zero()
        device = self._critic.device
        response = batch.response
        lengths = response.positions.amax(dim=1) + 1 if len(response.lengths) else response.lengths
        groups = micro_batches(lengths, rows, self._settings.micro_batch_tokens).rows
        for group in same_number_of_passes(self._critic, groups):
            mask = response.mask[group]
            input_ids = batch.padded(batch.finished_rows[group], lengths[group]).to(device)
            states = response.positions[group][mask].to(device)
            values = self._critic(input_ids)[mask.nonzero()[:, 0].to(device), states]
            loss = value_loss(values, value_targets[group][mask].to(device))
            token_mean(loss, global_count).backward()
            tally.add("value_loss_sum", loss)
            tally.add("critic_passes", len(loss))
