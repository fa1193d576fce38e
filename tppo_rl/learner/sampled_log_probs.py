"""Log-probs of sampled tokens under any language model, without a gradient; KL off the rewards."""

from __future__ import annotations

from dataclasses import replace

import torch

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import SampledTokens, TrainBatch, last_positions
from tppo_rl.learner.micro_batches import micro_batches
from tppo_rl.learner.models import Policy
from tppo_rl.learner.packing import model_input
from tppo_rl.learner.sharding import same_number_of_passes
from tppo_rl.maths import divergence


@torch.no_grad()
def sampled_log_probs(
    policy: Policy,
    batch: TrainBatch,
    sampled: SampledTokens,
    *,
    temperature: float,
    micro_batch_tokens: int,
    packing: bool = False,
    rows: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the policy's log-prob of sampled tokens, float32 [B, T] on the CPU, nats; padding 0.

    Args:
        policy: Any language model over the same vocabulary: the policy itself, or a reference.
        batch: B sequences.
        sampled: [B, T], `batch.window` or `batch.all_sampled`.
        temperature: Sampling temperature.
        micro_batch_tokens: Most tokens in one forward pass, padding included.
        packing: Whether the sequences of a forward pass stand in one row without padding.
        rows: int64 [N], sequences to compute; those of the others stay 0. None computes all.
    """
    log_probs = torch.zeros(sampled.tokens.shape)
    wanted = torch.arange(len(batch)) if rows is None else rows
    # Nothing after the state that predicts a sequence's last sampled token is needed.
    lengths = last_positions(sampled)
    groups = micro_batches(lengths, wanted, micro_batch_tokens, packing=packing).rows
    for group in same_number_of_passes(policy, groups):
        mask = sampled.mask[group]
        within, columns = mask.nonzero(as_tuple=True)
        inputs = model_input(batch, group, lengths[group], policy.device, packing=packing)
        predicted = policy(
            inputs.input_ids,
            *inputs.places(within, sampled.positions[group][mask]),
            sampled.tokens[group][mask].to(policy.device),
            temperature=temperature,
            position_ids=inputs.position_ids,
        ).log_probs
        log_probs[group[within], columns] = predicted.float().cpu()
    return log_probs


def with_kl_rewards(batch: TrainBatch, policy: Policy, reference: Policy, options: Options) -> TrainBatch:
    """Returns the batch with kl_coef * KL(policy || reference) of each sampled token taken off its reward.

    The policy is that before the update, so earlier windows of a response are judged as the critic sees them now.
    """
    policy_log_probs, reference_log_probs = (
        sampled_log_probs(
            model,
            batch,
            batch.all_sampled,
            temperature=options.rollout.sampling.temperature,
            micro_batch_tokens=options.compute.micro_batch_tokens,
            packing=options.compute.packing,
        )
        for model in (policy, reference)
    )
    estimator = getattr(divergence, options.policy_loss.kl_estimator)
    mask = batch.all_sampled.mask
    penalties = torch.zeros(len(batch.tokens))
    places = (batch.offsets[:-1, None] + batch.all_sampled.positions)[mask]
    penalties[places] = options.policy_loss.kl_coef * estimator(reference_log_probs, policy_log_probs)[mask]
    rows = torch.arange(len(batch))
    return replace(
        batch,
        window=_minus(batch.window, batch.at_positions(penalties, batch.window, rows)),
        response=_minus(batch.response, batch.at_positions(penalties, batch.response, batch.finished_rows)),
        all_sampled=_minus(batch.all_sampled, batch.at_positions(penalties, batch.all_sampled, rows)),
    )


def _minus(sampled: SampledTokens, penalties: torch.Tensor) -> SampledTokens:
    return replace(sampled, rewards=sampled.rewards - penalties)
