"""The policy's part of an update: minibatches of window tokens under the clipped surrogate."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.micro_batches import micro_batches, minibatches, num_minibatches
from tppo_rl.learner.models import Policy
from tppo_rl.learner.optimizers import GradientStep, StepReport
from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.learner.sharding import ShardedGradientStep, same_number_of_passes
from tppo_rl.learner.tally import Tally
from tppo_rl.maths.divergence import k3
from tppo_rl.maths.importance import importance_weights
from tppo_rl.maths.log_probs import TokenLogProbs
from tppo_rl.maths.reduce import token_mean
from tppo_rl.maths.surrogate import SurrogateTerms, clipped_surrogate

POLICY_SUMS = (
    "policy_loss_sum",
    "entropy_sum",
    "clipped_low_sum",
    "clipped_high_sum",
    "kl_sum",
    "trained_passes",
    "processed_tokens",
    "padded_tokens",
    "first_tokens",
    "first_ratio_sum",
    "first_gap_sum",
    "first_fresh_tokens",
    "first_fresh_gap_sum",
    "first_weight_sum",
    "first_squared_weight_sum",
)
"""Sums that the policy's part adds to the tally. `first_*` are over the first minibatch, before any step."""

POLICY_MAXIMA = (
    "first_ratio_max",
    "first_ratio_negated_min",
    "first_ratio_deviation_max",
    "first_gap_max",
    "first_fresh_gap_max",
    "first_weight_max",
    "first_weight_negated_min",
)
"""Maxima that the policy's part adds to the tally; minima are maxima of the negated number."""


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The N window tokens of one micro-batch on the policy's device, and the sequences that they stand in."""

    input_ids: torch.Tensor
    """int64 [b, n], padded on the right with 0."""
    rows: torch.Tensor
    """int64 [N]."""
    positions: torch.Tensor
    """int64 [N], position of the predicting state."""
    tokens: torch.Tensor
    """int64 [N]."""
    behaviour_log_probs: torch.Tensor
    """float32 [N], nats."""
    old_log_probs: torch.Tensor
    """float32 [N], nats: the ratio's denominator."""
    advantages: torch.Tensor
    """float32 [N]."""
    fresh: torch.Tensor
    """bool [N], whether the current policy version sampled the token."""


class _Work:
    """A batch with everything that its window tokens are weighed by."""

    def __init__(self, batch: TrainBatch, advantages: torch.Tensor, version: int) -> None:
        self.batch = batch
        self.old_log_probs = batch.behaviour_log_probs
        self._advantages = advantages
        self._version = version
        # Nothing after the state that predicts a sequence's last sampled token is needed.
        self.lengths = batch.window.positions.amax(dim=1) + 1 if len(batch) else batch.window.lengths

    def tokens(self, rows: torch.Tensor, device: torch.device) -> _Tokens:
        """Gathers the window tokens of the given fragments, row by row."""
        batch, mask = self.batch, self.batch.window.mask[rows]
        return _Tokens(
            input_ids=batch.padded(rows, self.lengths[rows]).to(device),
            rows=mask.nonzero()[:, 0].to(device),
            positions=batch.window.positions[rows][mask].to(device),
            tokens=batch.window.tokens[rows][mask].to(device),
            behaviour_log_probs=batch.behaviour_log_probs[rows][mask].to(device),
            old_log_probs=self.old_log_probs[rows][mask].to(device),
            advantages=self._advantages[rows][mask].to(device),
            fresh=(batch.versions[rows][mask] == self._version).to(device),
        )


class PolicyStep:
    """Trains the policy on the window tokens of a batch."""

    def __init__(
        self,
        policy: Policy,
        step: GradientStep | ShardedGradientStep,
        settings: UpdateSettings,
        collective: Collective,
    ) -> None:
        self._policy = policy
        self._step = step
        self._settings = settings
        self._collective = collective

    def run(
        self,
        batch: TrainBatch,
        advantages: torch.Tensor,
        *,
        version: int,
        global_tokens: int,
        lr: float,
        frozen: bool,
        generator: np.random.Generator,
        tally: Tally,
    ) -> list[StepReport]:
        """Makes `num_epochs` passes over the batch, one optimizer step per minibatch.

        Returns one report for each optimizer step, the same on all learners.

        Args:
            batch: This learner's share; may be empty.
            advantages: float32 [B, T] of the window's tokens; padding is ignored.
            version: Policy version before the update.
            global_tokens: Window tokens on all learners.
            lr: Learning rate of the update.
            frozen: Only measure the first minibatch, train nothing.
            generator: Shuffles fragments into minibatches.
            tally: Receives `POLICY_SUMS` and `POLICY_MAXIMA`.
        """
        settings = self._settings
        work = _Work(batch, advantages, version)
        if settings.off_policy_correction == "none":
            work.old_log_probs = self._current_log_probs(work)
        num_parts = num_minibatches(global_tokens, settings.minibatch_size, self._collective.size)
        reports: list[StepReport] = []
        first = True
        for _ in range(settings.num_epochs):
            parts = minibatches(batch.window.lengths, num_parts, generator)
            counts = torch.tensor([int(batch.window.lengths[rows].sum()) for rows in parts], dtype=torch.int64)
            for rows, count in zip(parts, self._collective.sum_(counts).tolist(), strict=True):
                if count == 0:
                    continue
                with torch.set_grad_enabled(not frozen):
                    self._accumulate(work, rows, global_count=count, tally=tally, first=first)
                first = False
                if frozen:
                    return []
                reports.append(self._step.apply(lr))
        return reports

    def _accumulate(self, work: _Work, rows: torch.Tensor, *, global_count: int, tally: Tally, first: bool) -> None:
        """Adds up the gradient of one minibatch's mean token loss over this learner's micro-batches."""
        self._step.zero()
        groups = micro_batches(work.lengths, rows, self._settings.micro_batch_tokens)
        tally.add("processed_tokens", groups.positions)
        tally.add("padded_tokens", groups.padded_positions)
        for group in same_number_of_passes(self._policy, groups.rows):
            tokens = work.tokens(group, self._policy.device)
            log_probs, entropy = self._log_probs(tokens)
            terms = clipped_surrogate(
                log_probs,
                tokens.old_log_probs,
                tokens.advantages,
                clip_low=self._settings.clip_low,
                clip_high=self._settings.clip_high,
            )
            if log_probs.requires_grad:
                token_mean(terms.loss, global_count).backward()
            _measure(tally, tokens, log_probs.detach(), entropy, terms)
            if first:
                _measure_first(tally, tokens, log_probs.detach(), terms.ratio)

    @torch.no_grad()
    def _current_log_probs(self, work: _Work) -> torch.Tensor:
        """Returns the log-probs of the window's tokens under the weights before the update, float32 [B, T]."""
        log_probs = torch.zeros_like(work.batch.behaviour_log_probs)
        rows = torch.arange(len(work.batch))
        groups = micro_batches(work.lengths, rows, self._settings.micro_batch_tokens).rows
        for group in same_number_of_passes(self._policy, groups):
            current = self._log_probs(work.tokens(group, self._policy.device)).log_probs
            within, columns = work.batch.window.mask[group].nonzero(as_tuple=True)
            log_probs[group[within], columns] = current.float().cpu()
        return log_probs

    def _log_probs(self, tokens: _Tokens) -> TokenLogProbs:
        return self._policy(
            tokens.input_ids, tokens.rows, tokens.positions, tokens.tokens, temperature=self._settings.temperature
        )


def _measure(
    tally: Tally, tokens: _Tokens, log_probs: torch.Tensor, entropy: torch.Tensor, terms: SurrogateTerms
) -> None:
    tally.add("policy_loss_sum", terms.loss)
    tally.add("entropy_sum", entropy)
    tally.add("clipped_low_sum", terms.clipped_low)
    tally.add("clipped_high_sum", terms.clipped_high)
    tally.add("kl_sum", k3(log_probs, tokens.behaviour_log_probs))
    tally.add("trained_passes", len(log_probs))


def _measure_first(tally: Tally, tokens: _Tokens, log_probs: torch.Tensor, ratio: torch.Tensor) -> None:
    gap = (log_probs - tokens.behaviour_log_probs).abs()
    weights = importance_weights(log_probs, tokens.behaviour_log_probs)
    tally.add("first_tokens", len(ratio))
    tally.add("first_ratio_sum", ratio)
    tally.add("first_gap_sum", gap)
    tally.add("first_fresh_tokens", tokens.fresh)
    tally.add("first_fresh_gap_sum", gap[tokens.fresh])
    tally.add("first_weight_sum", weights)
    tally.add("first_squared_weight_sum", weights.double().square())
    tally.largest("first_ratio_max", ratio)
    tally.largest("first_ratio_negated_min", -ratio)
    tally.largest("first_ratio_deviation_max", (ratio - 1.0).abs())
    tally.largest("first_gap_max", gap)
    tally.largest("first_fresh_gap_max", gap[tokens.fresh])
    tally.largest("first_weight_max", weights)
    tally.largest("first_weight_negated_min", -weights)
