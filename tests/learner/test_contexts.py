from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learner_helpers import VOCABULARY, estimate_targets, load_models, make_fragment, make_fragments
from transformers import (
    DynamicCache,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)

from tppo_rl.config.options import Options
from tppo_rl.learner import contexts
from tppo_rl.learner.batch import TrainBatch, batch_from_fragments, last_positions
from tppo_rl.learner.contexts import Contexts, window_contexts
from tppo_rl.learner.models import Policy, recompute_activations
from tppo_rl.learner.packing import ModelInput, model_input
from tppo_rl.learner.update import UpdateStep

BATCH = batch_from_fragments(make_fragments(0, 9))
CPU = torch.device("cpu")


def whole_sequences(batch: TrainBatch = BATCH) -> ModelInput:
    return model_input(batch, torch.arange(len(batch)), last_positions(batch.window), CPU, packing=False)


def windows_alone(policy: Policy, batch: TrainBatch = BATCH, *, micro_batch_tokens: int = 40) -> ModelInput:
    before = window_contexts(policy, batch, micro_batch_tokens).contexts
    return before.model_input(batch, torch.arange(len(batch)), last_positions(batch.window), CPU)


@torch.no_grad()
def states_of(policy: Policy, input_ids: torch.Tensor) -> torch.Tensor:
    """Keys and values of all layers side by side, [n, W], of one sequence int64 [1, n], from transformers' own cache."""
    cache = DynamicCache()
    policy.model(input_ids, past_key_values=cache, use_cache=True)
    return torch.cat(
        [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)], dim=1
    )


def log_probs(policy: Policy, inputs: ModelInput, batch: TrainBatch = BATCH) -> torch.Tensor:
    mask = batch.window.mask
    rows, columns = inputs.places(mask.nonzero()[:, 0], batch.window.positions[mask])
    tokens = batch.window.tokens[mask]
    return policy(rows=rows, positions=columns, tokens=tokens, temperature=0.8, **inputs.of_model()).log_probs


def gradients(policy: Policy, loss: torch.Tensor) -> torch.Tensor:
    policy.zero_grad()
    loss.backward()
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def sum_row_by_row(policy: Policy) -> torch.Tensor:
    """Without padding and masks: keys and values of the context from a pass of their own, cut off the graph."""
    total = torch.zeros(())
    input_ids = whole_sequences().input_ids
    for row, length in enumerate(last_positions(BATCH.window).tolist()):
        start = int(BATCH.window.positions[row, 0])
        tokens = input_ids[row : row + 1, :length]
        cache = DynamicCache()
        if start:
            with torch.no_grad():
                policy.model(tokens[:, :start], past_key_values=cache, use_cache=True)
        logits = policy.model(tokens[:, start:], past_key_values=cache, use_cache=True).logits[0] / 0.8
        sampled = BATCH.window.mask[row]
        positions, chosen = BATCH.window.positions[row][sampled], BATCH.window.tokens[row][sampled]
        total = total + logits.log_softmax(-1)[positions - start, chosen].sum()
    return total


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_the_same_and_gradients_those_of_windows_alone(
    model_folder: str, dtype: torch.dtype, recompute: bool
) -> None:
    policy, _ = load_models(model_folder, dtype)
    through_all = log_probs(policy, whole_sequences())
    whole = gradients(policy, through_all.sum())
    wanted = gradients(policy, sum_row_by_row(policy))
    if recompute:
        recompute_activations(policy)
    after_contexts = log_probs(policy, windows_alone(policy))
    torch.testing.assert_close(after_contexts, through_all, atol=1e-5, rtol=0)
    ours = gradients(policy, after_contexts.sum())
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert float((ours - whole).norm() / whole.norm()) > 0.01


def test_without_contexts_it_is_the_usual_gradient(model_folder: str) -> None:
    policy, _ = load_models(model_folder)
    batch = batch_from_fragments(make_fragments(1, 5, context=1, earlier=0))
    assert not batch.window.positions[:, 0].any()
    whole = gradients(policy, log_probs(policy, whole_sequences(batch), batch).sum())
    ours = gradients(policy, log_probs(policy, windows_alone(policy, batch), batch).sum())
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("micro_batch_tokens", [1, 30, 10_000])
def test_contexts_lie_back_to_back_however_they_were_computed(model_folder: str, micro_batch_tokens: int) -> None:
    policy, _ = load_models(model_folder)
    completed = window_contexts(policy, BATCH, micro_batch_tokens)
    computed = completed.contexts
    assert torch.equal(computed.lengths, BATCH.window.positions[:, 0])
    assert completed.padded_positions >= completed.positions == int(computed.lengths.sum())
    for row, length in enumerate(computed.lengths.tolist()):
        if length:
            wanted = states_of(policy, BATCH.padded(torch.tensor([row]), computed.lengths[[row]]))
            torch.testing.assert_close(computed.of(row), wanted, atol=1e-5, rtol=1e-4)


def test_no_fragments_are_one_token_of_padding(model_folder: str) -> None:
    policy, _ = load_models(model_folder)
    none = torch.zeros(0, dtype=torch.int64)
    for batch in (batch_from_fragments([]), BATCH):
        inputs = window_contexts(policy, batch, 100).contexts.model_input(batch, none, none, CPU)
        assert inputs.input_ids.tolist() == [[0]]
        assert inputs.past_key_values is None


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            lambda: GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=2)),
            id="positions that are learned",
        ),
        pytest.param(
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=50, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
                )
            ),
            id="Llama",
        ),
    ],
)
def test_other_architectures(model: PreTrainedModel) -> None:
    torch.manual_seed(0)
    policy = Policy(model())  # type: ignore[operator]
    torch.testing.assert_close(
        log_probs(policy, windows_alone(policy)), log_probs(policy, whole_sequences()), atol=1e-4, rtol=0
    )


def test_padding_after_a_long_context_needs_no_position_of_its_own() -> None:
    batch = batch_from_fragments(
        make_fragments(0, 1, context=20, tokens=4) + make_fragments(1, 1, context=1, tokens=12)
    )
    longest = int(last_positions(batch.window).max())
    torch.manual_seed(0)
    policy = Policy(GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=longest, n_embd=32, n_layer=2, n_head=2)))
    torch.testing.assert_close(
        log_probs(policy, windows_alone(policy, batch), batch),
        log_probs(policy, whole_sequences(batch), batch),
        atol=1e-4,
        rtol=0,
    )


def test_models_that_forget_what_is_far_away_are_refused(model_folder: str) -> None:
    config = Gemma2Config(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    _, critic = load_models(model_folder)
    with pytest.raises(ValueError, match=r"context_gradient=False: Gemma2Model .*sliding_attention"):
        UpdateStep(Policy(Gemma2ForCausalLM(config)), critic, Options.of(context_gradient=False))


def test_models_that_go_on_otherwise_are_refused(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, critic = load_models(model_folder)
    after_contexts = contexts.after_contexts

    def misplaced(*windows: Any) -> ModelInput:
        inputs = after_contexts(*windows)
        assert inputs.position_ids is not None
        return replace(inputs, position_ids=inputs.position_ids + 9)

    monkeypatch.setattr(contexts, "after_contexts", misplaced)
    with pytest.raises(ValueError, match=r"context_gradient=False: Qwen2Model computes otherwise after a context"):
        UpdateStep(policy, critic, Options.of(context_gradient=False))


def updated(folder: str, **options: Any) -> tuple[dict[str, float], torch.Tensor]:
    """Metrics of one update and the policy's weights after it."""
    policy, critic = load_models(folder)
    options = Options.of(lr=1e-3, micro_batch_tokens=60, **options)
    targets = estimate_targets(critic, BATCH, options)
    metrics = UpdateStep(policy, critic, options).run(BATCH, targets, policy_version=9).metrics
    return metrics, torch.cat([parameter.flatten() for parameter in policy.parameters()]).detach()


def test_an_update_reports_the_same_and_moves_otherwise(model_folder: str) -> None:
    with_context, weights = updated(model_folder)
    without, other_weights = updated(model_folder, context_gradient=False)
    for name in ("policy_loss", "entropy", "log_prob_diff_mean", "value_loss", "processed_tokens"):
        assert without[name] == pytest.approx(with_context[name], rel=1e-4)
    assert without["policy_grad_norm"] != pytest.approx(with_context["policy_grad_norm"], rel=1e-3)
    assert not torch.allclose(weights, other_weights, atol=1e-5)


def test_all_passes_share_the_contexts(model_folder: str) -> None:
    of_contexts = int(BATCH.window.positions[:, 0].sum())
    of_windows = int(last_positions(BATCH.window).sum()) - of_contexts
    passes = {"num_epochs": 3, "minibatch_size": 20}
    assert updated(model_folder, **passes)[0]["processed_tokens"] == 3 * (of_contexts + of_windows)
    without = updated(model_folder, context_gradient=False, **passes)[0]
    assert without["processed_tokens"] == of_contexts + 3 * of_windows


def sharing_batch() -> TrainBatch:
    """20 tokens that all begin with, then two prompts in groups of three, of which one response is in its second window."""
    rng = np.random.default_rng(0)
    first, prompts = rng.integers(2, VOCABULARY, 20), rng.integers(2, VOCABULARY, (2, 18))
    fragments = []
    for row in range(6):
        fragment = make_fragment(rng, episode_id=row, context=38, earlier=5 if row == 4 else 0)
        context = fragment.context.copy()
        context[:38] = np.concatenate([first, prompts[row // 3]])
        fragments.append(replace(fragment, context=context))
    return batch_from_fragments(fragments)


@pytest.mark.parametrize("micro_batch_tokens", [1, 50, 10_000])
def test_what_contexts_share_is_computed_once(model_folder: str, micro_batch_tokens: int) -> None:
    policy, _ = load_models(model_folder)
    batch = sharing_batch()
    completed = window_contexts(policy, batch, micro_batch_tokens)
    last = torch.arange(len(batch))
    assert completed.contexts.lengths.tolist() == [37, 37, 37, 37, 42, 37]
    # The first 20; the rest of two prompts; the earlier window, with the token that no other context has.
    assert completed.positions == 20 + 2 * 17 + 5
    for row, length in enumerate(completed.contexts.lengths.tolist()):
        wanted = states_of(policy, batch.padded(last[[row]], torch.tensor([length])))
        torch.testing.assert_close(completed.contexts.of(row), wanted, atol=1e-5, rtol=1e-4)


def test_states_at_hand_are_kept_and_not_shared(model_folder: str) -> None:
    policy, _ = load_models(model_folder)
    batch = sharing_batch()
    whole = window_contexts(policy, batch, 100).contexts
    # As of older weights, which nobody else may get.
    at_hand = Contexts(torch.tensor([0, 30, 0, 0, 0, 0]), whole.of(1)[:30] + 1.0, whole.shapes)
    completed = window_contexts(policy, batch, 100, at_hand)
    assert completed.positions == 20 + 2 * 17 + 5 + 7
    assert torch.equal(completed.contexts.of(1)[:30], at_hand.states)
    for row in (0, 2, 3, 4, 5):
        torch.testing.assert_close(completed.contexts.of(row), whole.of(row), atol=1e-5, rtol=1e-4)


def test_padding_reads_no_memory_that_nobody_has_written(model_folder: str) -> None:
    """A pass reads place 0 in the padding of short contexts, and the first window's own states are written after it."""
    policy, _ = load_models(model_folder)
    batch = sharing_batch()
    whole = window_contexts(policy, batch, 10_000).contexts
    known = [0, 8, 4, 0, 0, 0]
    at_hand = Contexts(
        torch.tensor(known), torch.cat([whole.of(row)[:length] for row, length in enumerate(known)]), whole.shapes
    )
    # Torch then fills new memory with NaN, which no mask takes out of a product.
    torch.use_deterministic_algorithms(True)
    try:
        completed = window_contexts(policy, batch, 10_000, at_hand).contexts
    finally:
        torch.use_deterministic_algorithms(False)
    torch.testing.assert_close(completed.states, whole.states, atol=1e-5, rtol=1e-4)
