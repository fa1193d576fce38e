"""Every estimator and every term of the losses against the plain float64 loop of `reference`, gradients included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_helpers import estimate_targets, load_models, make_fragment, make_fragments, save_tiny_model, windows
from test_update import NO_CLIPPING, Run, near_policy

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.advantages import group_advantages, normalized_advantages, plain_advantages
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.sampled_log_probs import sampled_log_probs, with_kl_rewards
from tppo_rl.learner.targets import Targets
from tppo_rl.learner.update import fragment_report
from tppo_rl.learner.value_batches import finished_returns, monte_carlo_batch

POLICY_OPTIONS: dict[str, dict[str, Any]] = {
    "tail-corrected": {"boundary_value": "tail_corrected"},
    "tail-corrected, lambda 1": {"boundary_value": "tail_corrected", "lambda_": 1.0},
    "length-adaptive lambda": {"lambda_": "length_adaptive", "lambda_alpha": 0.4},
    "dual clip": {"dual_clip": 1.3},
    "response mean": {"loss_aggregation": "response"},
    "entropy": {"entropy_coef": 0.3, "sampling": {"temperature": 0.8}},
    "truncated importance": {"off_policy_correction": "truncated_importance", "importance_cap": 1.1},
    "decoupled": {"off_policy_correction": "decoupled"},
    "none": {"off_policy_correction": "none"},
    "sequence mask": {"sequence_mask": (0.9, 1.05)},
    "positive LM": {"positive_lm_coef": 0.2},
    "everything": {
        "boundary_value": "tail_corrected",
        "dual_clip": 1.3,
        "entropy_coef": 0.1,
        "off_policy_correction": "truncated_importance",
        "importance_cap": 1.1,
        "sequence_mask": (0.8, 1.2),
        "positive_lm_coef": 0.2,
    },
}
CRITIC_OPTIONS: dict[str, dict[str, Any]] = {
    "lambda-returns": {"critic_targets": "lambda_returns", "critic_lambda": 0.8},
    "lambda-returns, lambda 1": {"critic_targets": "lambda_returns", "critic_lambda": 1.0},
    "also truncated": {"critic_targets": "include_unfinished", "critic_lambda": 0.8},
    "also truncated, bootstrap": {"critic_targets": "include_unfinished", "boundary_value": "bootstrap"},
}
COMMON = {"gamma": 0.97, "lambda_": 0.9, "micro_batch_tokens": 40} | NO_CLIPPING


@pytest.fixture(scope="module")
def other_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_model(tmp_path_factory.mktemp("reference"), seed=1)


def in_hindsight(fragments: list[Fragment]) -> list[Fragment]:
    """Every unfinished fragment a second time, with a residual."""
    rng = np.random.default_rng(7)
    again = [replace(f, hindsight_residual=float(rng.normal())) for f in fragments if not f.finished]
    # Of every second one a part of the advantages was left out at first.
    left_out = [replace(f, left_out_advantages=rng.normal(size=len(f)).astype(np.float32)) for f in again[::2]]
    return fragments + left_out + again[1::2]


def one_response_in_hindsight(fragments: list[Fragment]) -> list[Fragment]:
    """Three windows of one response in hindsight, in another order, and other fragments."""
    rng = np.random.default_rng(8)
    again = [
        replace(f, hindsight_residual=float(rng.normal())) for f in windows(90, lengths=(5, 6, 3, 2), turns=True)[:3]
    ]
    again[1] = replace(again[1], left_out_advantages=rng.normal(size=len(again[1])).astype(np.float32))
    return [again[2], *fragments, again[0], again[1]]


@pytest.mark.parametrize("name", [name for name in POLICY_OPTIONS if name != "response mean"])
def test_windows_of_one_response_in_hindsight_have_the_gradient_of_each(model_folder: str, name: str) -> None:
    run = Run(model_folder, **(COMMON | {"importance_cap": 1.2} | POLICY_OPTIONS[name]))
    fragments = one_response_in_hindsight(near_policy(run.policy, make_fragments(0, 4)))
    policy, critic = load_models(model_folder, torch.float64)
    expected = reference.gradient(reference.policy_loss(policy, critic, fragments, run.options), policy).float()
    result = run.update(fragments)
    torch.testing.assert_close(run.gradients()[0], expected, atol=1e-5, rtol=1e-4)
    assert result.metrics["hindsight_tokens"] == 5 - 1 + 6 - 1 + 3 - 1


def test_windows_of_one_response_in_hindsight_are_processed_once(model_folder: str) -> None:
    again = one_response_in_hindsight([])
    *_, last = windows(90, lengths=(5, 6, 3, 2), turns=True)
    result = Run(model_folder, **COMMON).update(again)
    # The last state predicts the last sampled token, behind which stands one of the environment.
    assert result.metrics["processed_tokens"] == len(last.context) - 2
    values = estimate_targets(load_models(model_folder)[1], batch_from_fragments(again), Options.of()).values
    assert values is not None
    assert not values.window.any(), "the critic does not read what the policy alone trains on"
    assert len(batch_from_fragments(again)) == 1


@pytest.mark.parametrize("hindsight", [False, True])
@pytest.mark.parametrize("name", POLICY_OPTIONS)
def test_policy_gradient_equals_a_plain_float64_loop(model_folder: str, name: str, hindsight: bool) -> None:
    run = Run(model_folder, **(COMMON | {"importance_cap": 1.2} | POLICY_OPTIONS[name]))
    fragments = near_policy(run.policy, make_fragments(0, 10))
    if hindsight:
        fragments = in_hindsight(fragments)
    policy, critic = load_models(model_folder, torch.float64)
    expected = reference.gradient(reference.policy_loss(policy, critic, fragments, run.options), policy).float()
    plain = Run(model_folder, **COMMON)
    plain.update(fragments)
    run.update(fragments)
    torch.testing.assert_close(run.gradients()[0], expected, atol=1e-5, rtol=1e-4)
    assert (run.gradients()[0] - plain.gradients()[0]).norm() > 1e-3, "the option makes a difference"


@pytest.mark.parametrize("name", CRITIC_OPTIONS)
def test_critic_gradient_equals_a_plain_float64_loop(model_folder: str, name: str) -> None:
    run = Run(model_folder, **(COMMON | CRITIC_OPTIONS[name]))
    fragments = make_fragments(0, 10)
    _, critic = load_models(model_folder, torch.float64)
    expected = reference.gradient(reference.value_loss(critic, fragments, run.options), critic).float()
    run.update(fragments)
    torch.testing.assert_close(run.gradients()[1], expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("estimator", ["k2", "k3"])
def test_kl_in_the_loss(model_folder: str, other_folder: str, estimator: str) -> None:
    run = Run(model_folder, kl_coef=0.5, kl_estimator=estimator, **COMMON)
    fragments = near_policy(run.policy, make_fragments(0, 10))
    policy, critic = load_models(model_folder, torch.float64)
    theirs, _ = load_models(other_folder, torch.float64)
    loss = reference.policy_loss(policy, critic, fragments, run.options, theirs)
    batch = batch_from_fragments(fragments)
    other, _ = load_models(other_folder)
    log_probs = sampled_log_probs(other, batch, batch.window, temperature=1.0, micro_batch_tokens=40)
    targets = replace(estimate_targets(run.critic, batch, run.options), reference_log_probs=log_probs)
    result = run.step.run(batch, targets, 0)
    torch.testing.assert_close(run.gradients()[0], reference.gradient(loss, policy).float(), atol=1e-5, rtol=1e-4)
    assert result.metrics["reference_kl"] > 0.1
    assert result.metrics["policy_loss"] == pytest.approx(float(loss.detach()), abs=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_kl_off_the_rewards(model_folder: str, other_folder: str, estimator: str) -> None:
    """Every sampled token pays, those of earlier windows too, and nothing else does."""
    run = Run(model_folder, kl_coef=0.5, kl_estimator=estimator, kl_in="reward", **COMMON)
    other, _ = load_models(other_folder)
    fragments = make_fragments(0, 6)
    batch = with_kl_rewards(batch_from_fragments(fragments), run.policy, other, run.options)
    for row, fragment in enumerate(fragments):
        sequence = torch.from_numpy(np.r_[fragment.context, fragment.tokens].astype(np.int64))
        rewards = np.r_[fragment.context_rewards, fragment.rewards]
        sampled = np.r_[fragment.context_sampled, fragment.sampled].astype(bool)
        with torch.no_grad():
            ours, theirs = (
                model.model(input_ids=sequence[None]).logits[0].log_softmax(-1)[:-1].gather(1, sequence[1:, None])[:, 0]
                for model in (run.policy, other)
            )
        difference = (theirs - ours).numpy()
        penalty = {"k1": -difference, "k2": difference**2 / 2, "k3": np.expm1(difference) - difference}[estimator]
        expected = rewards[1:][sampled[1:]] - 0.5 * penalty[sampled[1:]]
        count = len(fragment)
        np.testing.assert_allclose(batch.all_sampled.rewards[row, : len(expected)], expected, atol=1e-4)
        np.testing.assert_allclose(batch.window.rewards[row, :count], expected[-count:], atol=1e-4)
        if fragment.finished:
            place = batch.finished_rows.tolist().index(row)
            np.testing.assert_allclose(batch.response.rewards[place, : len(expected)], expected, atol=1e-4)


def test_without_a_kl_term_in_the_loss_there_is_no_metric_of_it(model_folder: str) -> None:
    result = Run(model_folder, kl_coef=0.5, kl_in="reward").update(make_fragments(0, 4))
    assert "reference_kl" not in result.metrics


def test_value_clip_bounds_how_far_a_value_moves(model_folder: str) -> None:
    fragments = make_fragments(0, 8)
    unclipped = Run(model_folder, critic_num_epochs=4, **NO_CLIPPING)
    clipped = Run(model_folder, critic_num_epochs=4, value_clip=1e-3, **NO_CLIPPING)
    batch = batch_from_fragments(fragments)
    moves = []
    for run in (unclipped, clipped):
        before = estimate_targets(run.critic, batch, run.options).values
        run.update(fragments)
        after = estimate_targets(run.critic, batch, run.options).values
        assert before is not None
        assert after is not None
        moves.append(float((after.response - before.response).abs().mean()))
    assert moves[1] < moves[0]
    far = Run(model_folder, critic_num_epochs=4, value_clip=1e3, **NO_CLIPPING)
    far.update(fragments)
    torch.testing.assert_close(far.gradients()[1], unclipped.gradients()[1])


def test_imitation_is_of_whole_right_responses_only(model_folder: str) -> None:
    """Without advantages what is left is the loss on right responses, their earlier windows included."""
    run = Run(model_folder, positive_lm_coef=1.0, **NO_CLIPPING)
    rng = np.random.default_rng(3)
    fragments = [
        make_fragment(rng, episode_id=index, earlier=5, tokens=4, finished=index != 2, reward=1.0 - index)
        for index in range(3)
    ]
    batch = batch_from_fragments(fragments)
    result = run.step.run(batch, Targets(torch.zeros(batch.window.tokens.shape)), 0)
    policy, _ = load_models(model_folder, torch.float64)
    sequence = torch.from_numpy(np.r_[fragments[0].context, fragments[0].tokens].astype(np.int64))
    log_probs = policy.model(input_ids=sequence[None]).logits[0].log_softmax(-1)[:-1].gather(1, sequence[1:, None])
    expected = -log_probs[-9:].mean()
    torch.testing.assert_close(run.gradients()[0], reference.gradient(expected, policy).float(), atol=1e-5, rtol=1e-4)
    assert result.metrics["positive_lm_loss"] == pytest.approx(float(expected.detach()), abs=1e-5)


def test_sequence_mask_is_counted(model_folder: str) -> None:
    run = Run(model_folder, sequence_mask=(0.9, 1.1))
    fragments = near_policy(run.policy, make_fragments(0, 4), spread=0.0)
    far = replace(fragments[0], behavior_log_probs=fragments[0].behavior_log_probs - fragments[0].sampled)
    result = run.update([far, *fragments[1:]])
    assert result.metrics["sequence_masked_fraction"] == pytest.approx(len(far) / sum(map(len, fragments)))


def whole(count: int = 6) -> list[Fragment]:
    rng = np.random.default_rng(2)
    return [
        replace(make_fragment(rng, episode_id=i, tokens=3 + i, finished=True), prompt_index=i // 3)
        for i in range(count)
    ]


def test_plain_gae_is_egae_on_whole_episodes_to_the_last_bit(model_folder: str) -> None:
    for lambda_ in (0.9, 1.0, "length_adaptive"):
        run = Run(model_folder, lambda_=lambda_, lambda_alpha=0.5)
        batch = batch_from_fragments(whole())
        targets = estimate_targets(run.critic, batch, run.options)
        assert targets.values is not None
        assert torch.equal(plain_advantages(batch, targets.values, run.options), targets.advantages)
        other = estimate_targets(run.critic, batch, run.options.replace(boundary_value="tail_corrected"))
        assert torch.equal(other.advantages, targets.advantages)


@pytest.mark.parametrize("estimator", ["gae", "group_relative"])
@pytest.mark.parametrize("options", [{}, {"earlier": 3, "finished": True}])
def test_estimators_of_whole_episodes_refuse_windows(
    model_folder: str, estimator: str, options: dict[str, Any]
) -> None:
    run = Run(model_folder)
    batch = batch_from_fragments([make_fragment(np.random.default_rng(0), **options)])
    values = estimate_targets(run.critic, batch, run.options).values
    assert values is not None
    estimate = {
        "gae": lambda: plain_advantages(batch, values, run.options),
        "group_relative": lambda: group_advantages(batch, None, run.options),
    }[estimator]
    with pytest.raises(ValueError, match=f"advantage_estimator='{estimator}'"):
        estimate()


def test_group_advantages_by_hand(model_folder: str) -> None:
    options = Run(model_folder, group_scale=False).options
    fragments = [
        replace(f, rewards=np.r_[np.zeros(len(f) - 1), reward].astype(np.float32))
        for f, reward in zip(whole(), [1, 0, 0, 1, 1, 1], strict=True)
    ]
    batch = batch_from_fragments(fragments)
    relative = group_advantages(batch, None, options)
    assert relative[:, 0].tolist() == pytest.approx([2 / 3, -1 / 3, -1 / 3, 0, 0, 0], abs=1e-6)
    assert all(len(set(row[:length].tolist())) == 1 for row, length in zip(relative, batch.window.lengths, strict=True))
    assert not relative[~batch.window.mask].any()


@pytest.mark.parametrize("scope", ["batch", "group"])
@pytest.mark.parametrize("normalization", ["whiten", "scale"])
def test_normalized_advantages(model_folder: str, normalization: str, scope: str) -> None:
    run = Run(model_folder, advantage_normalization=normalization, advantage_normalization_scope=scope)
    batch = batch_from_fragments(whole())
    raw = estimate_targets(run.critic, batch, run.options.replace(advantage_normalization="none")).advantages
    normalized = normalized_advantages(batch, raw, run.options)
    for rows in ([0, 1, 2], [3, 4, 5]) if scope == "group" else (range(6),):
        index = torch.tensor(list(rows))
        mask = batch.window.mask[index]
        x, y = raw[index][mask].double(), normalized[index][mask].double()
        shift = x.mean() if normalization == "whiten" else 0.0
        torch.testing.assert_close(y, (x - shift) / x.std(unbiased=False), atol=1e-5, rtol=1e-5)
    assert not normalized[~batch.window.mask].any()


@pytest.mark.parametrize("normalization", ["whiten", "scale"])
def test_corrections_are_scaled_like_the_advantages_that_they_correct(model_folder: str, normalization: str) -> None:
    run = Run(model_folder, advantage_normalization=normalization, hindsight=True)
    fragments = make_fragments(3, 6)
    alone, both = batch_from_fragments(fragments), batch_from_fragments(in_hindsight(fragments))
    raw, plain = (
        estimate_targets(run.critic, batch, run.options.replace(advantage_normalization="none")).advantages
        for batch in (both, alone)
    )
    normalized = normalized_advantages(both, raw, run.options)
    width = plain.shape[1]
    assert torch.equal(normalized[: len(alone), :width], normalized_advantages(alone, plain, run.options))
    std = plain[alone.window.mask].double().std(unbiased=False)
    torch.testing.assert_close(normalized[len(alone) :].double(), raw[len(alone) :].double() / std)
    assert len(both) > len(alone)


def test_fragments_in_hindsight_are_in_no_count(model_folder: str) -> None:
    fragments = make_fragments(0, 10)
    plain, again = Run(model_folder), Run(model_folder)
    first, second = plain.update(fragments), again.update(in_hindsight(fragments))
    for name in ("fragments", "trained_tokens", "entropy", "staleness_mean", "advantage_mean", "explained_variance"):
        assert second.metrics[name] == pytest.approx(first.metrics[name]), name
    ids = ["episode_id", "window_index", "trained_tokens"]
    assert second.fragment_report.select(ids).equals(first.fragment_report.select(ids))
    assert second.staleness_histogram.tolist() == first.staleness_histogram.tolist()
    assert second.metrics["hindsight_tokens"] == sum(len(f) for f in fragments if not f.finished)
    assert "hindsight_advantage_mean" in second.metrics
    assert "hindsight_advantage_mean" not in first.metrics
    torch.testing.assert_close(again.gradients()[1], plain.gradients()[1])


@pytest.mark.parametrize("scale", [1.0, 0.25, 0.0])
def test_window_and_hindsight_add_up_to_the_advantages_of_the_true_return(model_folder: str, scale: float) -> None:
    """With lambda = 1 that is the Monte-Carlo return minus the value, whatever the critic said and what was left out at first."""
    run = Run(model_folder, lambda_=1.0, gamma=0.9, hindsight=True, unfinished_advantage_scale=scale)
    rng = np.random.default_rng(4)
    window = make_fragment(rng, tokens=5)
    batch = batch_from_fragments([window])
    targets = estimate_targets(run.critic, batch, run.options)
    assert targets.values is not None
    held, following = float(targets.values.window[0, 4]), 0.7
    (left_out,) = fragment_report(batch, targets)["left_out_advantages"].to_pylist()
    assert (left_out is None) == (scale == 1)
    again = replace(
        window, hindsight_residual=following - held, left_out_advantages=np.array(left_out or [], np.float32)
    )
    second = estimate_targets(run.critic, batch_from_fragments([again]), run.options)
    expected = [0.9 ** (5 - t) * following - float(targets.values.window[0, t]) for t in range(5)]
    assert (targets.advantages + second.advantages)[0].tolist() == pytest.approx(expected, abs=1e-5)


def test_returns_of_a_value_batch_without_values(model_folder: str) -> None:
    options = Run(model_folder, gamma=0.9).options
    batch = batch_from_fragments(whole())
    held = monte_carlo_batch(batch, None, options)
    assert torch.equal(held.targets, finished_returns(batch, options))
    assert held.old_values is None


@settings(deadline=None, max_examples=20)
@given(
    options=st.sampled_from([*POLICY_OPTIONS.values(), *CRITIC_OPTIONS.values()]),
    seed=st.integers(0, 50),
    micro_batch_tokens=st.sampled_from([1, 17, 40, 10_000]),
    random=st.randoms(use_true_random=False),
)
def test_order_padding_and_micro_batches_change_no_gradient(
    model_folder: str, options: dict[str, Any], seed: int, micro_batch_tokens: int, random: Any
) -> None:
    fragments = in_hindsight(make_fragments(seed, 6))
    gradients = []
    for budget in (10_000, micro_batch_tokens):
        run = Run(model_folder, **(COMMON | options | {"micro_batch_tokens": budget}))
        run.update(fragments)
        gradients.append(torch.cat(run.gradients()))
        random.shuffle(fragments)
    torch.testing.assert_close(gradients[1], gradients[0], atol=2e-5, rtol=1e-4)
