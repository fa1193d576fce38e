"""The policy's part of an update: minibatches of window tokens, one optimizer step each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from tppo_rl.config.options import Options
from tppo_rl.core.registry import POLICY_LOSSES
from tppo_rl.learner.batch import TrainBatch, last_positions
from tppo_rl.learner.collective import Collective
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.contexts import Contexts, window_contexts
from tppo_rl.learner.memory_limit import MicroBatchLimit
from tppo_rl.learner.metric_sums import MetricSums
from tppo_rl.learner.micro_batches import MicroBatches, micro_batches, minibatches, num_minibatches
from tppo_rl.learner.models import Policy
from tppo_rl.learner.optimizers import GradientStep, StepReport
from tppo_rl.learner.packing import ModelInput, model_input
from tppo_rl.learner.policy_loss import PolicyTerms, Surrogate, policy_terms
from tppo_rl.learner.policy_losses import WindowTokens
from tppo_rl.learner.sampled_log_probs import sampled_log_probs
from tppo_rl.learner.sharding import ShardedGradientStep, same_number_of_passes
from tppo_rl.learner.subsampled_fragments import SubsampledFragments, subsampled_fragments
from tppo_rl.learner.targets import Targets
from tppo_rl.maths.divergence import k3
from tppo_rl.maths.imitation import positive_example_loss
from tppo_rl.maths.importance import importance_weights, sequence_mask, truncated_importance_weights
from tppo_rl.maths.reduce import response_weights, token_mean
from tppo_rl.maths.surrogate import bounded_log_ratio

POLICY_SUMS = (
    "policy_loss_sum",
    "entropy_sum",
    "kl_sum",
    "reference_kl_sum",
    "reference_passes",
    "masked_sum",
    "imitation_sum",
    "imitated_tokens",
    "trained_passes",
    "gradient_passes",
    "hindsight_passes",
    "hindsight_advantage_sum",
    "processed_tokens",
    "padded_tokens",
    "first_tokens",
    "first_ratio_sum",
    "first_diff_sum",
    "first_fresh_tokens",
    "first_fresh_diff_sum",
    "first_weight_sum",
    "first_squared_weight_sum",
)
"""Sums that the policy's part adds to the metric_sums. `first_*` are over the first minibatch, before any step."""

POLICY_MAXIMA = (
    "first_ratio_max",
    "first_ratio_negated_min",
    "first_ratio_deviation_max",
    "first_diff_max",
    "first_fresh_diff_max",
    "first_weight_max",
    "first_weight_negated_min",
)
"""Maxima that the policy's part adds to the metric_sums; minima are maxima of the negated number."""


@dataclass(frozen=True, eq=False)
class _Tokens:
    """The tokens of one micro-batch on the policy's device: N of windows, and M of earlier windows to imitate."""

    inputs: ModelInput
    """What the policy reads."""
    rows: torch.Tensor
    """int64 [N + M], row of the predicting state in `inputs`."""
    columns: torch.Tensor
    """int64 [N + M], its column."""
    tokens: torch.Tensor
    """int64 [N + M]."""
    window: WindowTokens
    """Of the N."""
    first_time: slice | torch.Tensor
    """Picks those of the N that are not in hindsight: a slice where all are, for picking by a mask waits for a GPU."""
    mean_weights: torch.Tensor
    """float32 [N]: weight of the token in the minibatch's mean."""
    draw_weights: torch.Tensor
    """float32 [N]: one over the probability that its fragment was drawn with."""
    imitated: torch.Tensor
    """bool [N + M]: whether the token is of a response that was right and shall be imitated."""
    fresh: torch.Tensor
    """bool [N], whether the current policy version sampled the token."""


class _Work:
    """A batch with everything that its tokens are weighed by, [B, T] each."""

    def __init__(
        self,
        batch: TrainBatch,
        targets: Targets,
        drawn: SubsampledFragments,
        mean_weights: torch.Tensor,
        version: int,
        options: Options,
        contexts: Contexts | None,
    ) -> None:
        self.batch = batch
        self.lengths = last_positions(batch.window)
        self.contexts = contexts
        self.old_log_probs = batch.behavior_log_probs
        self.importance_weights = torch.ones_like(batch.behavior_log_probs)
        self.kept = torch.ones(len(batch), dtype=torch.bool)
        self.mean_weights = mean_weights
        self.draw_weights = drawn.weights
        self._targets = targets
        self._packing = options.compute.packing
        self._version = version
        self._finished_row = torch.full((len(batch),), -1).index_put(
            (batch.finished_rows,), torch.arange(len(batch.finished_rows))
        )
        self._imitates = batch.correct & (options.policy_loss.positive_lm_coef > 0)

    def weigh(self, current_log_probs: torch.Tensor, options: Options) -> None:
        """Corrects for what the weights before the update think of the tokens: their log-probs, float32 [B, T]."""
        behavior, mask = self.batch.behavior_log_probs, self.batch.window.mask
        if options.policy_loss.sequence_mask is not None:
            low, high = options.policy_loss.sequence_mask
            rows = mask.nonzero()[:, 0]
            self.kept = sequence_mask(
                current_log_probs[mask], behavior[mask], rows, len(self.batch), low=low, high=high
            )
            # What is trained in hindsight is as stale as its response is long, and its weights are truncated anyway.
            self.kept |= self.batch.hindsight
        if options.policy_loss.off_policy_correction == "behavior":
            return
        self.old_log_probs = current_log_probs
        if options.policy_loss.off_policy_correction != "none":
            cap = (
                options.policy_loss.importance_cap
                if options.policy_loss.off_policy_correction == "truncated_importance"
                else None
            )
            self.importance_weights = truncated_importance_weights(current_log_probs, behavior, cap=cap)

    def sizes(self, rows: torch.Tensor) -> list[float]:
        """Sum of mean weights over the window tokens of the given fragments, and number of tokens to imitate."""
        lengths, imitated = self.batch.window.lengths[rows], rows[self._imitates[rows]]
        return [float((lengths * self.mean_weights[rows]).sum()), float(self.batch.all_sampled.lengths[imitated].sum())]

    def micro_batches(self, rows: torch.Tensor, max_tokens: int) -> MicroBatches:
        """Groups fragments into micro-batches of what the policy reads of them."""
        if self.contexts is None:
            return micro_batches(self.lengths, rows, max_tokens, packing=self._packing)
        contexts = self.contexts.lengths
        return micro_batches(self.lengths - contexts, rows, max_tokens, contexts=contexts)

    def tokens(self, rows: torch.Tensor, device: torch.device, *, record: bool) -> _Tokens:
        """Gathers the tokens of the given fragments, row by row; `record` as for `Contexts.model_input`."""
        batch, mask = self.batch, self.batch.window.mask[rows]
        reference = self._targets.reference_log_probs
        within = mask.nonzero()[:, 0]
        extra_within, extra_positions, extra_tokens = self._earlier_tokens(rows)
        inputs = self._inputs(rows, device, record=record)
        states, columns = inputs.places(
            torch.cat([within, extra_within]), torch.cat([batch.window.positions[rows][mask], extra_positions])
        )
        hindsight = batch.hindsight[rows][within]
        imitated = torch.cat([self._imitates[rows][within], torch.ones_like(extra_within, dtype=torch.bool)])
        return _Tokens(
            inputs=inputs,
            rows=states,
            columns=columns,
            tokens=torch.cat([batch.window.tokens[rows][mask], extra_tokens]).to(device),
            window=WindowTokens(
                behavior_log_probs=batch.behavior_log_probs[rows][mask].to(device),
                old_log_probs=self.old_log_probs[rows][mask].to(device),
                advantages=self._targets.advantages[rows][mask].to(device),
                importance_weights=self.importance_weights[rows][mask].to(device),
                kept=self.kept[rows][within].to(device),
                hindsight=hindsight.to(device) if bool(hindsight.any()) else None,
                reference_log_probs=None if reference is None else reference[rows][mask].to(device),
                fragments=within.to(device),
            ),
            first_time=(~hindsight).to(device) if bool(hindsight.any()) else slice(None),
            mean_weights=self.mean_weights[rows][within].to(device),
            draw_weights=self.draw_weights[rows][within].to(device),
            imitated=imitated.to(device),
            fresh=(batch.versions[rows][mask] == self._version).to(device),
        )

    def _inputs(self, rows: torch.Tensor, device: torch.device, *, record: bool) -> ModelInput:
        lengths = self.lengths[rows]
        if self.contexts is None:
            return model_input(self.batch, rows, lengths, device, packing=self._packing)
        return self.contexts.model_input(self.batch, rows, lengths, device, record=record)

    def _earlier_tokens(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Index in `rows`, position and token of what responses to imitate sampled before their last window."""
        within = self._imitates[rows].nonzero()[:, 0]
        finished = self._finished_row[rows[within]]
        response = self.batch.response
        earlier = response.lengths[finished] - self.batch.window.lengths[rows[within]]
        mask = torch.arange(response.tokens.shape[1]) < earlier[:, None]
        return within[mask.nonzero()[:, 0]], response.positions[finished][mask], response.tokens[finished][mask]


class PolicyStep:
    """Trains the policy on the window tokens of a batch."""

    def __init__(
        self,
        policy: Policy,
        step: GradientStep | ShardedGradientStep,
        options: Options,
        collective: Collective,
        limit: MicroBatchLimit,
        cache: ContextCache | None = None,
    ) -> None:
        """Takes what trains; a cache spares the contexts that earlier updates have computed."""
        self._limit = limit
        self._policy = policy
        self._cache = cache
        self._step = step
        self._options = options
        self._collective = collective
        self._surrogate: Surrogate = POLICY_LOSSES.resolve(options.policy_loss.policy_loss)

    def run(
        self,
        batch: TrainBatch,
        targets: Targets,
        *,
        version: int,
        global_tokens: int,
        lr: float,
        frozen: bool,
        generator: np.random.Generator,
        metric_sums: MetricSums,
    ) -> list[StepReport]:
        """Makes `num_epochs` passes over the batch, one optimizer step per minibatch.

        Returns one report for each optimizer step, the same on all learners.

        Args:
            batch: This learner's share; may be empty.
            targets: Advantages and reference log-probs of the same batch.
            version: Policy version before the update.
            global_tokens: Window tokens on all learners.
            lr: Learning rate of the update.
            frozen: Only measure the first minibatch, train nothing.
            generator: Shuffles fragments into minibatches.
            metric_sums: Receives `POLICY_SUMS` and `POLICY_MAXIMA`.
        """
        options = self._options
        share = 1.0 if frozen else options.optimizer.policy_token_fraction
        by_response = options.policy_loss.loss_aggregation == "response"
        mean_weights = response_weights(batch.window.lengths) if by_response else torch.ones(len(batch))
        drawn = subsampled_fragments(
            batch, targets.advantages, mean_weights, share, options.optimizer.num_epochs, generator
        )
        contexts = (
            None if options.compute.context_gradient or frozen else self._contexts(batch, drawn.rows, metric_sums)
        )
        work = _Work(batch, targets, drawn, mean_weights, version, options, contexts)
        if options.policy_loss.recomputes_log_probs:
            work.weigh(self._current_log_probs(batch, drawn.rows), options)
        num_parts = num_minibatches(
            math.ceil(share * global_tokens), options.optimizer.minibatch_size, self._collective.size
        )
        # Of fragments that were drawn the expected mean is over the tokens of all.
        expected_weight = self._weight_of_all(work) / max(1, num_parts) if share < 1 else None
        reports: list[StepReport] = []
        first = True
        for epoch, of_pass in enumerate(drawn.passes):
            parts = [of_pass[part] for part in minibatches(batch.window.lengths[of_pass], num_parts, generator)]
            sizes = torch.tensor([work.sizes(rows) for rows in parts], dtype=torch.float64).reshape(num_parts, 2)
            for rows, (weight, num_imitated) in zip(parts, self._collective.sum_(sizes).tolist(), strict=True):
                if weight == 0:
                    continue
                minibatch = partial(
                    self._accumulate,
                    work,
                    rows,
                    weight=weight if expected_weight is None else expected_weight,
                    num_imitated=num_imitated,
                    metric_sums=metric_sums,
                    first=first,
                    cache=self._cache if contexts is not None and (epoch == 0 or share < 1) else None,
                )
                longest = int(work.lengths[rows].max()) if len(rows) else 0
                with torch.set_grad_enabled(not frozen):
                    self._limit.compute(minibatch, longest=longest, metric_sums=metric_sums)
                first = False
                if frozen:
                    return []
                reports.append(self._step.apply(lr))
            first_time = of_pass[~batch.hindsight[of_pass]]
            metric_sums.add("gradient_passes", batch.window.lengths[first_time])
        if self._cache is not None:
            self._cache.drop_finished(batch)
        return reports

    def _weight_of_all(self, work: _Work) -> float:
        """Returns the sum of the mean's weights over the whole batch, on all learners."""
        sizes = torch.tensor(work.sizes(torch.arange(len(work.batch))), dtype=torch.float64)
        return float(self._collective.sum_(sizes)[0])

    def _contexts(self, batch: TrainBatch, rows: torch.Tensor, metric_sums: MetricSums) -> Contexts:
        """Completes the contexts of the given windows with the weights before the update."""
        at_hand = None if self._cache is None else self._cache.contexts(batch)
        completed = window_contexts(self._policy, batch, self._limit.tokens, at_hand, rows)
        metric_sums.add("processed_tokens", completed.positions)
        metric_sums.add("padded_tokens", completed.padded_positions)
        return completed.contexts

    def _accumulate(
        self,
        work: _Work,
        rows: torch.Tensor,
        *,
        weight: float,
        num_imitated: float,
        metric_sums: MetricSums,
        first: bool,
        cache: ContextCache | None,
    ) -> None:
        """Adds up the gradient of one minibatch's mean loss over this learner's micro-batches.

        Args:
            work: The batch.
            rows: Fragments of the minibatch.
            weight: Sum of the mean's weights over the minibatch, on all learners; its expectation where fragments are drawn.
            num_imitated: Tokens to imitate in the minibatch, on all learners.
            metric_sums: See `run`.
            first: Whether no step has been made yet.
            cache: Takes the states of these windows.
        """
        options = self._options
        self._step.zero()
        groups = work.micro_batches(rows, self._limit.tokens)
        metric_sums.add("processed_tokens", groups.positions)
        metric_sums.add("padded_tokens", groups.padded_positions)
        for group in same_number_of_passes(self._policy, groups.rows):
            tokens = work.tokens(group, self._policy.device, record=cache is not None)
            every_log_prob, every_entropy = self._policy(
                rows=tokens.rows,
                positions=tokens.columns,
                tokens=tokens.tokens,
                temperature=options.rollout.sampling.temperature,
                entropy_gradient=options.policy_loss.entropy_coef > 0,
                **tokens.inputs.of_model(),
            )
            if cache is not None and len(group):
                assert work.contexts is not None
                cache.keep(work.batch, group, work.contexts, tokens.inputs)
            count = len(tokens.mean_weights)
            log_probs, entropy = every_log_prob[:count], every_entropy[:count]
            terms = policy_terms(self._surrogate, log_probs, entropy, tokens.window, options)
            loss = token_mean(terms.loss * tokens.mean_weights * tokens.draw_weights, weight)
            if num_imitated:
                imitation = positive_example_loss(every_log_prob, tokens.imitated)
                loss = loss + options.policy_loss.positive_lm_coef * token_mean(imitation, num_imitated)
                metric_sums.add("imitation_sum", imitation)
                metric_sums.add("imitated_tokens", tokens.imitated)
            if log_probs.requires_grad:
                self._step.backward(loss)
            _measure(metric_sums, tokens, log_probs.detach(), entropy, terms)
            if first:
                _measure_first(metric_sums, tokens, log_probs.detach())

    def _current_log_probs(self, batch: TrainBatch, rows: torch.Tensor) -> torch.Tensor:
        """Returns the log-probs of some windows' tokens under the weights before the update, float32 [B, T]; others 0."""
        return sampled_log_probs(
            self._policy,
            batch,
            batch.window,
            temperature=self._options.rollout.sampling.temperature,
            micro_batch_tokens=self._limit.tokens,
            packing=self._options.compute.packing,
            rows=rows,
        )


def _measure(
    metric_sums: MetricSums, tokens: _Tokens, log_probs: torch.Tensor, entropy: torch.Tensor, terms: PolicyTerms
) -> None:
    # Windows in hindsight have been measured when they were trained first.
    first_time, hindsight = tokens.first_time, tokens.window.hindsight
    # Fragments that were drawn speak for those that were not.
    weights = tokens.draw_weights[first_time]

    def add(name: str, per_token: torch.Tensor) -> None:
        metric_sums.add(name, weights * per_token[first_time])

    add("policy_loss_sum", terms.loss)
    add("entropy_sum", entropy)
    for name, per_token in terms.metrics.items():
        metric_sums.add_metric(name, weights * per_token[first_time])
    add("kl_sum", k3(log_probs, tokens.window.behavior_log_probs))
    if tokens.window.reference_log_probs is not None:
        add("reference_kl_sum", terms.kl_to_reference)
        metric_sums.add("reference_passes", weights)
    metric_sums.add("masked_sum", tokens.draw_weights * ~tokens.window.kept)
    metric_sums.add("trained_passes", weights)
    if hindsight is not None:
        metric_sums.add("hindsight_passes", tokens.draw_weights[hindsight])
        metric_sums.add("hindsight_advantage_sum", (tokens.draw_weights * tokens.window.advantages.abs())[hindsight])


def _measure_first(metric_sums: MetricSums, tokens: _Tokens, log_probs: torch.Tensor) -> None:
    first_time = tokens.first_time
    behavior, fresh = tokens.window.behavior_log_probs[first_time], tokens.fresh[first_time]
    ratio = bounded_log_ratio(log_probs[first_time], tokens.window.old_log_probs[first_time]).exp()
    gap = (log_probs[first_time] - behavior).abs()
    weights = importance_weights(log_probs[first_time], behavior)
    metric_sums.add("first_tokens", len(ratio))
    metric_sums.add("first_ratio_sum", ratio)
    metric_sums.add("first_diff_sum", gap)
    metric_sums.add("first_fresh_tokens", fresh)
    metric_sums.add("first_fresh_diff_sum", gap[fresh])
    metric_sums.add("first_weight_sum", weights)
    metric_sums.add("first_squared_weight_sum", weights.double().square())
    metric_sums.largest("first_ratio_max", ratio)
    metric_sums.largest("first_ratio_negated_min", -ratio)
    metric_sums.largest("first_ratio_deviation_max", (ratio - 1.0).abs())
    metric_sums.largest("first_diff_max", gap)
    metric_sums.largest("first_fresh_diff_max", gap[fresh])
    metric_sums.largest("first_weight_max", weights)
    metric_sums.largest("first_weight_negated_min", -weights)
