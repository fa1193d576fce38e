from __future__ import annotations

import numpy as np
import pytest
import reference
import torch
from learner_helpers import estimate_targets, load_models, make_fragments, parameters_of

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import batch_from_fragments, last_positions
from tppo_rl.learner.subsampled_fragments import subsampled_fragments
from tppo_rl.learner.update import UpdateStep

FRAGMENTS = make_fragments(11, 12)
BATCH = batch_from_fragments(FRAGMENTS)
TOKENS = int(BATCH.window.lengths.sum())
OPTIONS = Options.of(lr=1e-3, critic_lr=1e-3, grad_clip=None, micro_batch_tokens=60, policy_token_fraction=0.5)


class Updated:
    """One update of the batch, and what must have been drawn for it."""

    def __init__(self, folder: str, options: Options, version: int = 9) -> None:
        self.policy, self.critic = load_models(folder)
        self.before = load_models(folder)[0]
        targets = estimate_targets(self.critic, BATCH, options)
        step = UpdateStep(self.policy, self.critic, options)
        self.metrics = step.run(BATCH, targets, policy_version=version).metrics
        self.gradient = step.policy_gradients.buffer.clone()
        generator = np.random.default_rng((options.run.seed or 0, version, 0))
        self.drawn = subsampled_fragments(
            BATCH,
            targets.advantages,
            torch.ones(len(BATCH)),
            options.optimizer.policy_token_fraction,
            options.optimizer.num_epochs,
            generator,
        )


@pytest.mark.parametrize("correction", ["behavior", "decoupled"])
def test_the_gradient_is_the_weighted_sum_over_what_was_drawn(model_folder: str, correction: str) -> None:
    options = OPTIONS.replace(off_policy_correction=correction)
    updated = Updated(model_folder, options)
    rows = updated.drawn.rows.tolist()
    assert 0 < len(rows) < len(FRAGMENTS)
    _, critic = load_models(model_folder)
    weights = (updated.drawn.weights * BATCH.window.lengths / TOKENS).tolist()
    losses = [reference.policy_loss(updated.before, critic, [FRAGMENTS[row]], options) * weights[row] for row in rows]
    wanted = reference.gradient(torch.stack(losses).sum(), updated.before)
    torch.testing.assert_close(updated.gradient, wanted, atol=1e-6, rtol=1e-3)


@pytest.mark.integration
@pytest.mark.parametrize("loss_aggregation", ["token", "response"])
def test_over_many_draws_the_gradient_is_that_of_the_whole_batch(model_folder: str, loss_aggregation: str) -> None:
    options = OPTIONS.replace(loss_aggregation=loss_aggregation)
    whole = Updated(model_folder, options.replace(policy_token_fraction=1.0)).gradient.double()
    draws = torch.stack([Updated(model_folder, options, version).gradient for version in range(60)]).double()
    # Along the whole gradient, in units of its norm: 1 on average.
    along = draws @ whole / whole.square().sum()
    assert float(along.mean()) == pytest.approx(1.0, abs=4 * float(along.std()) / 60**0.5)
    assert float((draws.mean(dim=0) - whole).norm()) < float((draws - whole).norm(dim=1).mean()) / 4


def test_tokens_that_count_less_in_the_mean_are_drawn_less(model_folder: str) -> None:
    advantages = estimate_targets(load_models(model_folder)[1], BATCH, OPTIONS).advantages

    def weights(of_each: torch.Tensor) -> torch.Tensor:
        return subsampled_fragments(BATCH, advantages, of_each, 0.3, 1, np.random.default_rng(0)).weights

    half = torch.where(torch.arange(len(BATCH)) % 2 == 0, 1.0, 1e-3)
    assert (weights(half)[1::2] > weights(torch.ones(len(BATCH)))[1::2]).all()
    assert (weights(half)[::2] <= weights(torch.ones(len(BATCH)))[::2]).all()
    assert torch.equal(weights(half), weights(2 * half))


def test_recomputed_log_probs_are_of_what_was_drawn_alone(model_folder: str) -> None:
    policy, critic = load_models(model_folder)
    rows_read: list[int] = []
    policy.register_forward_pre_hook(
        lambda _, arguments, keywords: rows_read.append(len((*arguments, keywords.get("input_ids"))[0])),
        with_kwargs=True,
    )
    options = OPTIONS.replace(off_policy_correction="decoupled")
    targets = estimate_targets(critic, BATCH, options)
    UpdateStep(policy, critic, options).run(BATCH, targets, policy_version=9)
    assert sum(rows_read) == 2 * len(Updated(model_folder, options).drawn.rows)


@pytest.mark.integration
def test_metrics_speak_for_the_whole_batch(model_folder: str) -> None:
    metrics = [Updated(model_folder, OPTIONS, version).metrics for version in range(40)]
    whole = Updated(model_folder, OPTIONS.replace(policy_token_fraction=1.0)).metrics
    assert "policy_token_fraction" in whole
    assert whole["policy_token_fraction"] == 1
    assert all(each["trained_tokens"] == TOKENS for each in metrics)
    shares = [each["policy_token_fraction"] for each in metrics]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.05)
    for name in ("entropy", "approximate_kl"):
        values = [each[name] for each in metrics]
        assert np.mean(values) == pytest.approx(whole[name], abs=4 * np.std(values) / len(values) ** 0.5), name


def test_frozen_policies_are_measured_on_all_tokens(model_folder: str) -> None:
    frozen = OPTIONS.replace(critic_warmup_updates=10)
    ours = Updated(model_folder, frozen).metrics
    whole = Updated(model_folder, frozen.replace(policy_token_fraction=1.0)).metrics
    assert ours["entropy"] == whole["entropy"]
    assert "policy_token_fraction" not in ours


@pytest.mark.parametrize("minibatch_size", [None, 20])
def test_contexts_are_computed_for_what_was_drawn_alone(model_folder: str, minibatch_size: int | None) -> None:
    options = OPTIONS.replace(context_gradient=False, num_epochs=2, minibatch_size=minibatch_size)
    updated = Updated(model_folder, options)
    first, second = updated.drawn.passes
    assert first.tolist() != second.tolist()
    contexts = BATCH.window.positions[:, 0]
    windows = last_positions(BATCH.window) - contexts
    processed = contexts[updated.drawn.rows].sum() + windows[first].sum() + windows[second].sum()
    assert updated.metrics["processed_tokens"] == int(processed)
    assert updated.metrics["policy_steps"] == 2 * (1 if minibatch_size is None else max(1, round(TOKENS / 2 / 20)))


def test_a_batch_of_which_nothing_is_drawn_makes_no_step(model_folder: str) -> None:
    batch = batch_from_fragments(FRAGMENTS[:1])
    # Without a clip every fragment that is drawn has a gradient.
    options = OPTIONS.replace(policy_token_fraction=0.3, clip_low=1.0, clip_high=1e9)
    steps = []
    for version in range(20):
        policy, critic = load_models(model_folder)
        before = parameters_of(policy)
        targets = estimate_targets(critic, batch, options)
        metrics = UpdateStep(policy, critic, options).run(batch, targets, policy_version=version).metrics
        assert metrics["trained_tokens"] == len(FRAGMENTS[0])
        assert torch.equal(parameters_of(policy), before) == (metrics["policy_steps"] == 0)
        steps.append(metrics["policy_steps"])
    assert set(steps) == {0.0, 1.0}
