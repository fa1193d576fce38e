from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from host_config import learner_config
from learner_helpers import estimate_targets, load_models, windows
from transformers import DynamicCache, PreTrainedModel

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments, last_positions
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.contexts import window_contexts
from tppo_rl.learner.models import Policy, recompute_activations
from tppo_rl.learner.subsampled_fragments import subsampled_fragments
from tppo_rl.learner.update import UpdateStep
from tppo_rl.learner.values import critic_values

OPTIONS = Options.of(context_gradient=False, context_cache_tokens=1000, micro_batch_tokens=40, lr=1e-3)
FROZEN = OPTIONS.replace(lr=0.0, critic_lr=0.0)


EPISODES = [
    windows(0),
    windows(1, prompt=1, lengths=(4, 4, 4)),
    windows(2, prompt=7, lengths=(8, 2, 9)),
    windows(3, turns=True),
]
BATCHES = [batch_from_fragments([episode[index] for episode in EPISODES]) for index in range(3)]


def trained(
    folder: str, options: Options, batches: list[TrainBatch], *, recompute: bool = False
) -> list[dict[str, float]]:
    """Metrics of one update after another."""
    policy, critic = load_models(folder)
    for model in (policy, critic) if recompute else ():
        recompute_activations(model)
    caches = (
        [ContextCache(options.compute.context_cache_tokens) for _ in range(2)]
        if options.compute.context_cache_tokens
        else None
    )
    step = UpdateStep(policy, critic, options, cache=caches[0] if caches else None)
    metrics = []
    for version, batch in enumerate(batches):
        targets = estimate_targets(critic, batch, options, cache=caches[1] if caches else None)
        metrics.append(step.run(batch, targets, policy_version=version).metrics)
    return metrics


@pytest.mark.parametrize(("micro_batch_tokens", "recompute"), [(1, False), (40, False), (1000, False), (40, True)])
def test_while_weights_rest_all_is_as_without_a_cache(
    model_folder: str, micro_batch_tokens: int, recompute: bool
) -> None:
    options = FROZEN.replace(micro_batch_tokens=micro_batch_tokens)
    with_cache = trained(model_folder, options, BATCHES, recompute=recompute)
    without = trained(model_folder, options.replace(context_cache_tokens=0), BATCHES)
    for ours, plain in zip(with_cache, without, strict=True):
        assert ours.keys() == plain.keys()
        for name in plain.keys() & {"policy_loss", "entropy", "policy_grad_norm", "value_loss", "explained_variance"}:
            assert ours[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-5, nan_ok=True), name
    assert "value_loss" in with_cache[-1], "the episodes finish in the last batch"


def test_only_what_is_new_is_computed(model_folder: str) -> None:
    first, *later = trained(model_folder, OPTIONS, BATCHES)
    sequences = [int(batch.window.positions.amax(dim=1).add(1).sum()) for batch in BATCHES]
    assert first["processed_tokens"] == sequences[0]
    # A prompt of one token has no context that a window could be read beside, but is kept all the same.
    assert [metrics["processed_tokens"] for metrics in later] == [
        after - before for before, after in pairwise(sequences)
    ]


def test_windows_that_were_not_drawn_are_completed_as_contexts(model_folder: str) -> None:
    # All but at rest, so that nothing depends on which update a context was computed in.
    for seed in range(5):
        options = OPTIONS.replace(lr=1e-12, critic_lr=1e-12, policy_token_fraction=0.4, seed=seed)
        with_cache = trained(model_folder, options, BATCHES)
        without = trained(model_folder, options.replace(context_cache_tokens=0), BATCHES)
        for ours, plain in zip(with_cache, without, strict=True):
            for name in ("policy_loss", "entropy", "policy_grad_norm", "policy_token_fraction"):
                assert ours[name] == pytest.approx(plain[name], rel=1e-3, abs=1e-5, nan_ok=True), (seed, name)
            assert ours["processed_tokens"] <= plain["processed_tokens"]


def test_what_any_pass_has_drawn_is_kept(model_folder: str) -> None:
    options = OPTIONS.replace(policy_token_fraction=0.4, num_epochs=2)
    batch = BATCHES[0]
    for version in range(8):
        policy, critic = load_models(model_folder)
        cache = ContextCache(1000)
        targets = estimate_targets(critic, batch, options)
        UpdateStep(policy, critic, options, cache=cache).run(batch, targets, policy_version=version)
        drawn = subsampled_fragments(
            batch, targets.advantages, torch.ones(len(batch)), 0.4, 2, np.random.default_rng((0, version, 0))
        )
        assert cache.num_positions == int(last_positions(batch.window)[drawn.rows].sum())


def test_values_are_those_of_the_whole_sequence(model_folder: str) -> None:
    _, critic = load_models(model_folder)
    cache = ContextCache(1000)
    for batch in BATCHES:
        ours, plain = critic_values(critic, batch, 40, cache=cache), critic_values(critic, batch, 40)
        for part, wanted in zip(ours, plain, strict=True):
            torch.testing.assert_close(part, wanted, atol=1e-5, rtol=1e-4)
    assert cache.num_positions == 0, "all episodes have finished"


def next_log_probs(policy: Policy, old: PreTrainedModel, fragment: Fragment) -> torch.Tensor:
    """Log-probs of a window after a context that other weights have read, by transformers' own cache."""
    start, cache = len(fragment.context) - 1, DynamicCache()
    tokens = torch.from_numpy(np.r_[fragment.context, fragment.tokens]).long()[None]
    with torch.no_grad():
        old(tokens[:, :start], past_key_values=cache, use_cache=True)
        logits = policy.model(tokens[:, start:-1], past_key_values=cache, use_cache=True).logits[0]
    return logits.log_softmax(-1).gather(1, tokens[0, start + 1 :, None])[:, 0]


def test_contexts_are_as_old_as_the_update_that_trained_them(model_folder: str) -> None:
    policy, critic = load_models(model_folder)
    old, _ = load_models(model_folder)
    first, second, _ = windows(5)
    cache, options = ContextCache(1000), OPTIONS.replace(lr=0.05)
    step = UpdateStep(policy, critic, options, cache=cache)
    batch = batch_from_fragments([first])
    step.run(batch, estimate_targets(critic, batch, options), policy_version=0)
    batch = batch_from_fragments([second])
    contexts = window_contexts(policy, batch, 100, cache.contexts(batch)).contexts
    assert contexts.lengths.tolist() == [len(second.context) - 1]
    stop = torch.tensor([len(second.context) + len(second.tokens) - 1])
    inputs = contexts.model_input(batch, torch.tensor([0]), stop, torch.device("cpu"))
    states = inputs.places(torch.zeros(len(second), dtype=torch.int64), batch.window.positions[0])
    ours = policy(
        rows=states[0],
        positions=states[1],
        tokens=batch.window.tokens[0],
        temperature=1.0,
        **inputs.of_model(),
    ).log_probs
    torch.testing.assert_close(ours, next_log_probs(policy, old.model, second), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(ours, next_log_probs(policy, policy.model, second), atol=1e-3)


def test_two_windows_of_an_episode_in_one_batch(model_folder: str) -> None:
    first, second, last = windows(0)
    batches = [batch_from_fragments([second, first]), batch_from_fragments([last])]
    with_cache = trained(model_folder, FROZEN, batches)
    without = trained(model_folder, FROZEN.replace(context_cache_tokens=0), batches)
    for ours, plain in zip(with_cache, without, strict=True):
        assert ours["policy_loss"] == pytest.approx(plain["policy_loss"], rel=1e-4)
    assert with_cache[1]["processed_tokens"] == len(last)


def test_finished_episodes_and_windows_in_hindsight_are_not_kept(model_folder: str) -> None:
    _, critic = load_models(model_folder)
    cache = ContextCache(1000)
    in_hindsight = replace(windows(6)[1], hindsight_residual=0.5)
    critic_values(critic, batch_from_fragments([windows(4)[0], windows(5)[2], in_hindsight]), 40, cache=cache)
    assert cache.num_positions == len(windows(4)[0].context) + len(windows(4)[0].tokens) - 1
    critic_values(critic, batch_from_fragments([windows(4)[1], windows(4)[2]]), 40, cache=cache)
    assert cache.num_positions == 0


def test_the_episodes_without_a_window_for_longest_go_first(model_folder: str) -> None:
    _, critic = load_models(model_folder)
    of_one = len(windows(0)[0].context) + len(windows(0)[0].tokens) - 1
    cache = ContextCache(2 * of_one)
    for seed in (0, 1, 2):
        critic_values(critic, batch_from_fragments([windows(seed)[0]]), 40, cache=cache)
    seconds = batch_from_fragments([windows(seed)[1] for seed in (0, 1, 2)])
    assert cache.contexts(seconds).lengths.tolist() == [0, of_one, of_one]
    ours, plain = critic_values(critic, seconds, 40, cache=cache), critic_values(critic, seconds, 40)
    torch.testing.assert_close(ours.window, plain.window, atol=1e-5, rtol=1e-4)
    assert cache.num_positions <= 2 * of_one


def test_an_update_of_no_fragments_changes_nothing(model_folder: str) -> None:
    nothing, after_nothing, last = trained(
        model_folder, OPTIONS, [batch_from_fragments([]), BATCHES[0], batch_from_fragments([])]
    )
    (alone,) = trained(model_folder, OPTIONS, BATCHES[:1])
    assert nothing["trained_tokens"] == nothing["processed_tokens"] == last["processed_tokens"] == 0
    for name in ("policy_loss", "entropy", "policy_grad_norm", "processed_tokens"):
        assert after_nothing[name] == pytest.approx(alone[name], rel=1e-5), name


def test_a_learner_forgets_contexts_with_the_weights_that_made_them(model_folder: str) -> None:
    group = learner_config(model_folder, context_gradient=False, context_cache_tokens=1000).build_learner_group()
    learner = group._learner
    assert learner is not None
    state = group.get_state()
    learner.update(batch=table_from_fragments([windows(0)[0]]))
    kept = {name: cache.num_positions for name, cache in learner._caches.items()}
    assert kept == {name: len(windows(0)[1].context) - 1 for name in ("policy", "critic")}
    for window in windows(0)[1:]:
        learner.update(batch=table_from_fragments([window]))
    assert not any(cache.num_positions for cache in learner._caches.values()), "the episode has finished"
    learner.update(batch=table_from_fragments([windows(1)[0]]))
    assert all(cache.num_positions for cache in learner._caches.values())
    group.set_state(state)
    assert not any(cache.num_positions for cache in learner._caches.values())


def test_a_critic_that_forgets_what_is_far_away_is_refused(model_folder: str) -> None:
    policy, critic = load_models(model_folder)
    critic.backbone.config.layer_types = ["sliding_attention"] * 2
    with pytest.raises(
        ValueError,
        match=r"context_cache_tokens: Qwen2Model has layers of sliding_attention; set context_cache_tokens to 0",
    ):
        UpdateStep(policy, critic, OPTIONS)
