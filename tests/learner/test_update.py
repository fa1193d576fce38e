from __future__ import annotations

import copy
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from learner_helpers import estimate_targets, load_models, make_fragment, make_fragments, parameters_of

from tppo_rl.config.options import Options
from tppo_rl.core.errors import RunError
from tppo_rl.core.fragments import Fragment
from tppo_rl.kernels.denormals import is_flushing
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.collective import SingleLearner
from tppo_rl.learner.models import Critic, Policy
from tppo_rl.learner.targets import Targets
from tppo_rl.learner.update import UpdateResult, UpdateStep, both

NO_CLIPPING = {"grad_clip": None, "critic_grad_clip": None}


class Run:
    """Two models and their update step."""

    def __init__(self, folder: str, **options: Any) -> None:
        self.policy, self.critic = load_models(folder)
        self.options = Options.of(**({"lr": 1e-3, "critic_lr": 1e-3} | options))
        self.step = UpdateStep(self.policy, self.critic, self.options)

    def update(self, fragments: list[Fragment], version: int = 0) -> UpdateResult:
        batch = batch_from_fragments(fragments)
        return self.step.run(batch, estimate_targets(self.critic, batch, self.options), version)

    def gradients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The last gradients of policy and critic."""
        assert self.step.critic_gradients is not None
        return self.step.policy_gradients.buffer.clone(), self.step.critic_gradients.buffer.clone()


def near_policy(policy: Policy, fragments: list[Fragment], spread: float = 0.3, version: int = 0) -> list[Fragment]:
    """Gives the fragments behavior log-probs around the policy's own, so that some ratios are clipped on each side."""
    rng = np.random.default_rng(0)
    result = []
    for fragment in fragments:
        sequence = torch.from_numpy(np.r_[fragment.context, fragment.tokens].astype(np.int64))
        with torch.no_grad():
            log_probs = policy.model(input_ids=sequence[None]).logits[0].log_softmax(dim=-1)
        own = log_probs[:-1].gather(1, sequence[1:, None])[len(fragment.context) - 1 :, 0].numpy()
        noisy = (own + spread * rng.standard_normal(len(own))) * fragment.sampled
        versions = np.where(fragment.sampled, version, -1).astype(np.int32)
        result.append(replace(fragment, behavior_log_probs=noisy.astype(np.float32), versions=versions))
    return result


@pytest.mark.parametrize(("boundary_value", "scale"), [("hold", 1.0), ("bootstrap", 1.0), ("bootstrap", 0.25)])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_gradients_equal_a_plain_float64_loop(
    model_folder: str, boundary_value: str, scale: float, temperature: float
) -> None:
    run = Run(
        model_folder,
        boundary_value=boundary_value,
        unfinished_advantage_scale=scale,
        sampling={"temperature": temperature},
        gamma=0.97,
        lambda_=0.9,
        micro_batch_tokens=40,
        **NO_CLIPPING,
    )
    fragments = near_policy(run.policy, make_fragments(0, 10))
    exact_policy, exact_critic = load_models(model_folder, torch.float64)
    loss = reference.policy_loss(exact_policy, exact_critic, fragments, run.options)
    value_loss = reference.value_loss(exact_critic, fragments, run.options)
    result = run.update(fragments)
    policy_gradient, critic_gradient = run.gradients()
    expected = reference.gradient(loss, exact_policy).float()
    torch.testing.assert_close(policy_gradient, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        critic_gradient, reference.gradient(value_loss, exact_critic).float(), atol=1e-5, rtol=1e-4
    )
    assert result.metrics["policy_loss"] == pytest.approx(float(loss.detach()), abs=1e-5)
    assert result.metrics["value_loss"] == pytest.approx(float(value_loss.detach()), abs=1e-5)
    assert result.metrics["policy_grad_norm"] == pytest.approx(float(expected.norm()), rel=1e-4)


def test_micro_batches_order_and_padding_change_nothing(model_folder: str) -> None:
    fragments = make_fragments(1, 9)
    gradients = []
    for budget, order in ((10_000, 1), (30, 1), (1, -1)):
        run = Run(model_folder, micro_batch_tokens=budget, **NO_CLIPPING)
        run.update(fragments[::order])
        gradients.append(torch.cat(run.gradients()))
    for other in gradients[1:]:
        torch.testing.assert_close(other, gradients[0], atol=1e-5, rtol=1e-5)


def test_loss_is_the_mean_over_tokens(model_folder: str) -> None:
    """A fragment split at a sampled token weighs as much as the whole: its tokens count, not its rows."""
    run = Run(model_folder, lambda_=1.0, **NO_CLIPPING)
    rng = np.random.default_rng(5)
    long = make_fragment(rng, tokens=9, episode_id=1)
    short = make_fragment(rng, tokens=2, episode_id=2)
    gradients = {}
    for name, fragments in {"both": [long, short], "long": [long], "short": [short]}.items():
        copied = Run(model_folder, lambda_=1.0, **NO_CLIPPING)
        copied.update(fragments)
        gradients[name] = copied.gradients()[0]
    torch.testing.assert_close(
        gradients["both"], (9 * gradients["long"] + 2 * gradients["short"]) / 11, atol=1e-6, rtol=1e-4
    )
    assert run.options.optimizer.num_epochs == 1


def test_context_tokens_are_no_policy_targets(model_folder: str) -> None:
    """Advantages of 0 in the window leave no gradient: neither prompt nor earlier windows have a loss of their own."""
    run = Run(model_folder)
    batch = batch_from_fragments(make_fragments(2, 6))
    targets = estimate_targets(run.critic, batch, run.options)
    nothing = Targets(torch.zeros_like(targets.advantages), targets.values, targets.value_batch)
    run.step.run(batch, nothing, 0)
    assert not run.gradients()[0].any()


def test_padding_of_the_advantages_is_not_read(model_folder: str) -> None:
    gradients = []
    for filling in (0.0, float("nan")):
        run = Run(model_folder, **NO_CLIPPING)
        batch = batch_from_fragments(make_fragments(2, 6))
        targets = estimate_targets(run.critic, batch, run.options)
        assert targets.value_batch is not None
        value_targets = torch.where(batch.response.mask, targets.value_batch.targets, filling)
        filled = Targets(
            torch.where(batch.window.mask, targets.advantages, filling),
            targets.values,
            replace(targets.value_batch, targets=value_targets),
        )
        run.step.run(batch, filled, 0)
        gradients.append(torch.cat(run.gradients()))
    assert torch.equal(*gradients)


def test_critic_never_sees_unfinished_episodes(model_folder: str) -> None:
    """Whatever unfinished fragments hold, the critic's gradient and the weights after the update stay the same."""
    fragments = make_fragments(3, 8)
    rng = np.random.default_rng(9)
    changed = [
        fragment
        if fragment.finished
        else replace(
            fragment,
            tokens=rng.permutation(fragment.tokens),
            rewards=fragment.sampled * np.float32(3.0),
            context_rewards=fragment.context_sampled * np.float32(-5.0),
        )
        for fragment in fragments
    ]
    only_finished = [fragment for fragment in fragments if fragment.finished]
    weights = []
    for share in (fragments, changed, only_finished):
        run = Run(model_folder, critic_num_epochs=2)
        run.update(share)
        weights.append(parameters_of(run.critic))
    torch.testing.assert_close(weights[1], weights[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(weights[2], weights[0], atol=1e-6, rtol=0)


def test_truncated_episodes_are_finished(model_folder: str) -> None:
    fragments = make_fragments(3, 4, finished=True)
    capped = [replace(fragment, terminated=False, truncated=True) for fragment in fragments]
    weights = []
    for share in (fragments, capped):
        run = Run(model_folder)
        run.update(share)
        weights.append(parameters_of(run.policy, run.critic))
    assert torch.equal(*weights)


def test_without_a_finished_episode_the_critic_rests(model_folder: str) -> None:
    run = Run(model_folder)
    before = parameters_of(run.critic), parameters_of(run.policy)
    metrics = run.update(make_fragments(4, 5, finished=False)).metrics
    assert torch.equal(parameters_of(run.critic), before[0])
    assert not torch.equal(parameters_of(run.policy), before[1])
    assert metrics["critic_steps"] == metrics["finished_episodes"] == metrics["value_batch_tokens"] == 0
    assert metrics["tokens_from_unfinished_fraction"] == 1.0
    assert not metrics.keys() & {"value_loss", "explained_variance", "return_mean", "critic_grad_norm"}


def test_no_fragments_at_all(model_folder: str) -> None:
    run = Run(model_folder)
    before = parameters_of(run.policy, run.critic)
    result = run.update([])
    assert torch.equal(parameters_of(run.policy, run.critic), before)
    assert result.fragment_report.num_rows == 0
    assert result.staleness_histogram.tolist() == []
    assert result.metrics["trained_tokens"] == 0
    assert all(np.isfinite(value) for value in result.metrics.values())


def test_clip_fractions_count_both_sides(model_folder: str) -> None:
    run = Run(model_folder, clip_low=0.1, clip_high=0.3, **NO_CLIPPING)
    fragments = near_policy(run.policy, make_fragments(5, 12), spread=0.5)
    batch = batch_from_fragments(fragments)
    advantages = estimate_targets(run.critic, batch, run.options).advantages[batch.window.mask]
    log_probs = own_log_probs(run.policy, fragments)
    ratio = (log_probs - batch.behavior_log_probs[batch.window.mask]).exp()
    metrics = run.update(fragments).metrics
    low, high = (ratio < 0.9) & (advantages < 0), (ratio > 1.3) & (advantages > 0)
    assert low.any()
    assert high.any()
    assert metrics["policy/clip_fraction_low"] == pytest.approx(float(low.double().mean()))
    assert metrics["policy/clip_fraction_high"] == pytest.approx(float(high.double().mean()))


def own_log_probs(policy: Policy, fragments: list[Fragment]) -> torch.Tensor:
    """The policy's log-probs of all window tokens, fragment by fragment."""
    plain = near_policy(policy, fragments, spread=0.0)
    return torch.from_numpy(
        np.concatenate([fragment.behavior_log_probs[fragment.sampled.astype(bool)] for fragment in plain])
    )


def test_first_minibatch_metrics(model_folder: str) -> None:
    run = Run(model_folder, num_epochs=3, minibatch_size=None)
    fresh = near_policy(run.policy, make_fragments(6, 3), spread=0.0, version=4)
    stale = near_policy(run.policy, make_fragments(7, 5), spread=0.4, version=2)
    fragments = fresh + stale
    behavior = batch_from_fragments(fragments)
    gap = own_log_probs(run.policy, fragments) - behavior.behavior_log_probs[behavior.window.mask]
    weights = gap.double().exp()
    metrics = run.update(fragments, version=4).metrics
    expected = {
        "log_prob_diff_mean": gap.abs().mean(),
        "log_prob_diff_max": gap.abs().max(),
        "first_ratio_mean": weights.mean(),
        "first_ratio_max": weights.max(),
        "first_ratio_min": weights.min(),
        "first_ratio_max_deviation": (weights - 1).abs().max(),
        "importance_weight_mean": weights.mean(),
        "effective_sample_size": weights.sum() ** 2 / weights.square().sum() / len(weights),
    }
    for name, value in expected.items():
        assert metrics[name] == pytest.approx(float(value), abs=1e-5), name
    assert metrics["fresh_log_prob_diff_max"] < 1e-5
    assert metrics["policy_steps"] == 3
    assert "fresh_log_prob_diff_max" not in run.update(stale, version=5).metrics


def test_staleness_and_token_counts(model_folder: str) -> None:
    run = Run(model_folder)
    fragments = make_fragments(8, 2, version=3, tokens=4, turns=False, finished=False)
    fragments += make_fragments(9, 1, version=1, tokens=4, turns=False, finished=True)
    result = run.update(fragments, version=3)
    assert result.staleness_histogram.tolist() == [8, 0, 4]
    metrics = result.metrics
    assert (metrics["staleness_mean"], metrics["staleness_max"]) == (pytest.approx(8 / 12), 2)
    assert (metrics["trained_tokens"], metrics["fragments"], metrics["finished_episodes"]) == (12, 3, 1)
    assert metrics["tokens_from_unfinished_fraction"] == pytest.approx(8 / 12)
    positions = sum(fragment.num_positions - 1 for fragment in fragments)
    assert metrics["processed_tokens"] == positions
    assert metrics["processed_per_trained_token"] == pytest.approx(positions / 12)
    assert 0 <= metrics["padding_fraction"] < 1


def test_fragment_report(model_folder: str) -> None:
    run = Run(model_folder)
    fragments = make_fragments(10, 5)
    exact = copy.deepcopy(run.critic)
    batch = batch_from_fragments(fragments)
    advantages = estimate_targets(run.critic, batch, run.options).advantages
    report = run.update(fragments).fragment_report.to_pylist()
    for place, (row, fragment) in enumerate(zip(report, fragments, strict=True)):
        sequence = torch.from_numpy(np.r_[fragment.context, fragment.tokens].astype(np.int64))
        with torch.no_grad():
            values = exact(sequence[None])[0]
        states = values[torch.from_numpy(np.flatnonzero(fragment.sampled)) + len(fragment.context) - 1]
        assert (row["episode_id"], row["window_index"]) == (fragment.episode_id, fragment.window_index)
        assert row["trained_tokens"] == len(fragment)
        assert row["boundary_value"] == pytest.approx(float(values[-1]), abs=1e-5)
        assert row["held_value"] == pytest.approx(float(states[-1]), abs=1e-5)
        assert row["mean_value"] == pytest.approx(float(states.mean()), abs=1e-5)
        assert row["values"] == pytest.approx(states.tolist(), abs=1e-5)
        assert row["advantages"] == pytest.approx(advantages[place, : len(fragment)].tolist(), abs=1e-5)


def test_values_of_tokens_are_reported_where_episodes_are_recorded(model_folder: str) -> None:
    report = Run(model_folder, record_episodes=0).update(make_fragments(10, 5)).fragment_report
    assert report["values"].null_count == report["advantages"].null_count == 5
    hindsight = [replace(one, hindsight_residual=0.5) for one in make_fragments(10, 2, finished=False)]
    fragments = make_fragments(11, 3)
    both = Run(model_folder).update(hindsight + fragments).fragment_report
    assert [len(row) for row in both["values"].to_pylist()] == [len(one) for one in fragments]


def test_statistics_of_advantages_and_values(model_folder: str) -> None:
    run = Run(model_folder)
    batch = batch_from_fragments(make_fragments(11, 8))
    targets = estimate_targets(run.critic, batch, run.options)
    assert targets.values is not None
    assert targets.value_batch is not None
    advantages = targets.advantages[batch.window.mask]
    returns, values = targets.value_batch.targets[batch.response.mask], targets.values.response[batch.response.mask]
    metrics = run.step.run(batch, targets, 0).metrics
    assert metrics["advantage_mean"] == pytest.approx(float(advantages.mean()), abs=1e-6)
    assert metrics["advantage_std"] == pytest.approx(float(advantages.std(correction=0)), abs=1e-6)
    assert metrics["return_mean"] == pytest.approx(float(returns.mean()), abs=1e-6)
    assert metrics["finished_value_mean"] == pytest.approx(float(values.mean()), abs=1e-6)
    assert metrics["value_mean"] == pytest.approx(float(targets.values.window[batch.window.mask].mean()), abs=1e-6)
    explained = 1 - (returns - values).var(correction=0) / returns.var(correction=0)
    assert metrics["explained_variance"] == pytest.approx(float(explained), abs=1e-5)


def test_equal_returns_have_no_explained_variance(model_folder: str) -> None:
    metrics = Run(model_folder).update(make_fragments(12, 4, finished=True, reward=1.0)).metrics
    assert "explained_variance" not in metrics
    assert metrics["return_mean"] == 1.0


def test_warmup_freezes_the_policy_and_still_measures(model_folder: str) -> None:
    run = Run(model_folder, critic_warmup_updates=2, minibatch_size=10)
    before = parameters_of(run.policy)
    for version in (0, 1):
        critic_before = parameters_of(run.critic)
        metrics = run.update(make_fragments(version, 6), version).metrics
        assert torch.equal(parameters_of(run.policy), before)
        assert not torch.equal(parameters_of(run.critic), critic_before)
        assert (metrics["policy_steps"], metrics["learning_rate"]) == (0, 0)
        assert {"first_ratio_mean", "log_prob_diff_max", "entropy"} <= metrics.keys()
        assert "policy_grad_norm" not in metrics
    assert run.update(make_fragments(2, 6), 2).metrics["policy_steps"] > 1
    assert not torch.equal(parameters_of(run.policy), before)


def test_learning_rate_ramp_starts_after_the_warmup(model_folder: str) -> None:
    run = Run(model_folder, critic_warmup_updates=1, lr_warmup_updates=4, lr=8e-4)
    rates = [run.update(make_fragments(version, 3), version).metrics["learning_rate"] for version in range(7)]
    assert rates == pytest.approx([0.0, 2e-4, 4e-4, 6e-4, 8e-4, 8e-4, 8e-4])
    assert run.step.policy_optimizer.param_groups[0]["lr"] == 8e-4
    assert run.step.critic_optimizer is not None
    assert run.step.critic_optimizer.param_groups[0]["lr"] == 1e-3


def test_learning_rates_follow_the_tokens_trained(model_folder: str) -> None:
    schedules: dict[str, Any] = {
        "lr": [[0, 8e-4], [100, 2e-4]],
        "critic_lr": [[0, 1e-3], [50, 0.0]],
        "lr_warmup_updates": 2,
    }
    run, other = (Run(model_folder, **schedules) for _ in range(2))
    rates, critic_rates, tokens = [], [], [0]
    for version in range(4):
        fragments = make_fragments(version, 5)
        if version == 2:
            other.step.set_state(run.step.get_state())
            run = other
        metrics = run.update(fragments, version).metrics
        rates.append(metrics["learning_rate"])
        critic_rates.append(metrics["critic_learning_rate"])
        assert run.step.policy_optimizer.param_groups[0]["lr"] == metrics["learning_rate"]
        tokens.append(tokens[-1] + sum(int(fragment.sampled.sum()) for fragment in fragments))
    assert tokens[1] < 50 < tokens[3]
    lines = [8e-4 - 6e-4 * min(1, count / 100) for count in tokens[:-1]]
    assert rates == pytest.approx([lines[0] / 2, *lines[1:]])
    assert critic_rates == pytest.approx([max(0.0, 1e-3 * (1 - count / 50)) for count in tokens[:-1]])


def test_gradient_clipping_is_of_each_model_alone(model_folder: str) -> None:
    fragments = make_fragments(13, 6)
    free = Run(model_folder, **NO_CLIPPING)
    metrics = free.update(fragments).metrics
    clipped = Run(model_folder, grad_clip=0.01, critic_grad_clip=None)
    assert clipped.update(fragments).metrics["policy_grad_norm"] == pytest.approx(metrics["policy_grad_norm"])
    policy_gradient, critic_gradient = clipped.gradients()
    assert float(policy_gradient.norm()) == pytest.approx(0.01, rel=1e-4)
    torch.testing.assert_close(critic_gradient, free.gradients()[1])


def test_gradients_that_are_not_finite_leave_the_weights_alone(model_folder: str) -> None:
    run = Run(model_folder)
    before = parameters_of(run.policy)
    batch = batch_from_fragments(make_fragments(14, 3))
    targets = estimate_targets(run.critic, batch, run.options)
    broken = Targets(torch.full_like(targets.advantages, float("inf")), targets.values, targets.value_batch)
    metrics = run.step.run(batch, broken, 0).metrics
    assert torch.equal(parameters_of(run.policy), before)
    assert (metrics["policy_steps"], metrics["policy_skipped_steps"], metrics["critic_skipped_steps"]) == (1, 1, 0)


def test_updates_whose_gradients_are_never_finite_end_the_run(model_folder: str) -> None:
    run = Run(model_folder, max_skipped_updates=3)
    batch = batch_from_fragments(make_fragments(14, 3))
    targets = estimate_targets(run.critic, batch, run.options)
    broken = Targets(torch.full_like(targets.advantages, float("inf")), targets.values, targets.value_batch)
    for skipped in (broken, broken, targets, broken, broken):
        run.step.run(batch, skipped, 0)
    with pytest.raises(RunError, match=r"policy: no optimizer step of 3 updates in a row .* lr=0.001"):
        run.step.run(batch, broken, 0)


@pytest.mark.parametrize("key", ["lr", "critic_lr"])
def test_weights_that_blow_up_end_the_run(model_folder: str, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The largest rate that there may be makes the small model's weights grow some threefold.
    monkeypatch.setattr("tppo_rl.learner.weight_guard.LARGEST_GROWTH", 1.5)
    run = Run(model_folder, **{key: 1.0})
    with pytest.raises(RunError, match=rf"one update took the norm of its weights from .* Lower {key}="):
        run.update(make_fragments(14, 3))


def test_other_weights_that_were_loaded_are_no_growth(model_folder: str) -> None:
    run = Run(model_folder)
    run.update(make_fragments(14, 3))
    with torch.no_grad():
        for parameter in run.policy.parameters():
            parameter.mul_(100.0)
    run.step.set_state(run.step.get_state())
    run.update(make_fragments(15, 3), version=0)


def test_recomputed_old_log_probs_treat_stale_tokens_as_fresh(model_folder: str) -> None:
    run = Run(model_folder, off_policy_correction="none", micro_batch_tokens=40)
    metrics = run.update(make_fragments(15, 8, version=0), version=3).metrics
    assert metrics["first_ratio_max_deviation"] < 1e-5
    assert metrics["log_prob_diff_max"] > 0.1
    assert metrics["importance_weight_max"] > 1.1


def test_minibatches_follow_the_seed_and_the_version(model_folder: str) -> None:
    def weights(seed: int, version: int) -> torch.Tensor:
        run = Run(model_folder, minibatch_size=12, num_epochs=2, seed=seed)
        run.update(make_fragments(16, 8), version)
        return parameters_of(run.policy)

    assert torch.equal(weights(1, 0), weights(1, 0))
    assert not torch.equal(weights(1, 0), weights(2, 0))
    assert not torch.equal(weights(1, 0), weights(1, 1))


def test_without_a_critic(model_folder: str) -> None:
    policy, _ = load_models(model_folder)
    step = UpdateStep(policy, None, Options.of())
    batch = batch_from_fragments(make_fragments(17, 4))
    advantages = torch.where(batch.window.mask, 1.0, 0.0)
    result = step.run(batch, Targets(advantages), 0)
    assert result.metrics["policy_steps"] == 1
    assert result.metrics["finished_episodes"] == 2
    assert "value_mean" not in result.metrics
    assert result.fragment_report["boundary_value"].null_count == 4
    assert result.fragment_report["values"].null_count == 4
    assert [sum(row) for row in result.fragment_report["advantages"].to_pylist()] == batch.window.lengths.tolist()


def test_a_token_from_the_future_is_our_bug(model_folder: str) -> None:
    with pytest.raises(AssertionError, match="newer"):
        Run(model_folder).update(make_fragments(18, 2, version=5), version=4)


def test_rewarded_tokens_become_likely(model_folder: str) -> None:
    """A one-token bandit: token 7 pays 1, all others -1, sampled from the policy itself."""
    run = Run(model_folder, lr=5e-3, critic_lr=5e-3, lambda_=1.0, critic_num_epochs=2)
    prompt, generator = torch.tensor([[3, 4, 5]]), torch.Generator().manual_seed(0)
    start = end = 0.0
    for version in range(25):
        with torch.no_grad():
            probs = run.policy.model(input_ids=prompt).logits[0, -1].softmax(dim=-1)
        start, end = (float(probs[7]) if version == 0 else start), float(probs[7])
        sampled = torch.multinomial((0.8 * probs + 0.2 / len(probs)), 64, replacement=True, generator=generator)
        run.update([bandit_fragment(token, float(probs[token].log()), version) for token in sampled.tolist()], version)
    assert start < 0.1
    assert end > 0.8


def bandit_fragment(token: int, log_prob: float, version: int) -> Fragment:
    return Fragment(
        episode_id=0,
        prompt_index=0,
        env_runner=0,
        window_index=0,
        prompt_length=3,
        context=np.array([3, 4, 5], np.int32),
        context_sampled=np.zeros(3, np.uint8),
        context_rewards=np.zeros(3, np.float32),
        tokens=np.array([token], np.int32),
        sampled=np.ones(1, np.uint8),
        behavior_log_probs=np.array([log_prob], np.float32),
        versions=np.array([version], np.int32),
        rewards=np.array([1.0 if token == 7 else -1.0], np.float32),
        terminated=True,
        truncated=False,
        correct=token == 7,
    )


def test_a_critic_beside_the_policy_learns_the_same(model_folder: str) -> None:
    options = {"num_epochs": 2, "minibatch_size": 20, "critic_num_epochs": 2, "critic_minibatch_size": 15}
    beside, afterwards = (Run(model_folder, parallel_critic=parallel, **options) for parallel in (True, False))
    for version in range(3):
        fragments = make_fragments(version, 8)
        got, wanted = (run.update(fragments, version) for run in (beside, afterwards))
        for name, value in wanted.metrics.items():
            assert name.endswith("_seconds") or got.metrics[name] == pytest.approx(value, rel=1e-5, nan_ok=True), name
        assert got.metrics["critic_steps"] > 2
    for model in ("policy", "critic"):
        torch.testing.assert_close(parameters_of(getattr(beside, model)), parameters_of(getattr(afterwards, model)))
    assert beside.gradients()[1].any()


def test_a_critic_beside_the_policy_flushes_subnormals_too(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(model_folder, parallel_critic=True)
    seen: list[tuple[bool, bool]] = []

    def note(*args: Any, **kwargs: Any) -> list[Any]:
        seen.append((is_flushing(), threading.current_thread() is threading.main_thread()))
        return []

    monkeypatch.setattr(run.step._critic_step, "run", note)
    run.update(make_fragments(0))
    assert seen == [(True, False)]


def test_several_learners_have_no_critic_beside_the_policy(model_folder: str) -> None:
    policy, critic = load_models(model_folder)
    several = SingleLearner()
    several.size = 2
    with pytest.raises(ValueError, match=r"^parallel_critic=True"):
        UpdateStep(policy, critic, Options.of(parallel_critic=True), several)


def test_both_have_ended_when_one_fails() -> None:
    ended: list[str] = []

    def fail() -> None:
        raise RuntimeError("one failed")

    def slow() -> None:
        time.sleep(0.1)
        ended.append("slow")

    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(RuntimeError, match="one failed"):
            both(fail, slow, thread)
        assert ended == ["slow"]
        with pytest.raises(RuntimeError, match="one failed"):
            both(slow, fail, thread)
        assert both(lambda: "first", lambda: threading.current_thread().name, thread)[1].startswith("ThreadPool")
    assert both(lambda: "first", lambda: threading.current_thread().name, None) == ("first", "MainThread")


def test_models_share_nothing(model_folder: str) -> None:
    policy, critic = load_models(model_folder)
    assert isinstance(critic, Critic)
    assert not {parameter.data_ptr() for parameter in policy.parameters()} & {
        parameter.data_ptr() for parameter in critic.parameters()
    }


def test_subnormal_gradients_are_0(model_folder: str) -> None:
    """A CPU takes many times as long with them; who called is left as he was."""
    run = Run(model_folder, **NO_CLIPPING)
    batch = batch_from_fragments(make_fragments(0))
    targets = estimate_targets(run.critic, batch, run.options)
    run.step.run(batch, replace(targets, advantages=1e-41 * targets.advantages), 0)
    assert not run.step.policy_gradients.buffer.any()
    assert run.step.critic_gradients is not None
    assert run.step.critic_gradients.buffer.any()
    assert not is_flushing()
