from __future__ import annotations

import pytest
import torch
from learner_helpers import load_models, make_fragments
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

from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.models import Policy
from tppo_rl.learner.settings import UpdateSettings
from tppo_rl.learner.targets import estimate_targets
from tppo_rl.learner.update import UpdateStep

BATCH = batch_from_fragments(make_fragments(0, 9))
ROWS, COLUMNS = BATCH.window.mask.nonzero().T
POSITIONS = BATCH.window.positions[BATCH.window.mask]
TOKENS = BATCH.window.tokens[BATCH.window.mask]
CONTEXT = BATCH.window.positions[:, 0]
INPUT_IDS = BATCH.padded(torch.arange(len(BATCH)), BATCH.sequence_lengths)


def log_probs(policy: Policy, context: torch.Tensor | None) -> torch.Tensor:
    return policy(INPUT_IDS, ROWS, POSITIONS, TOKENS, temperature=0.8, context=context).log_probs


def gradients(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def gradients_row_by_row(policy: Policy) -> torch.Tensor:
    """Without padding and masks: keys and values of the context from a pass of their own, cut off the graph."""
    policy.zero_grad()
    for row, length in enumerate(BATCH.sequence_lengths.tolist()):
        start = int(CONTEXT[row])
        tokens = INPUT_IDS[row : row + 1, :length]
        cache = DynamicCache()
        if start:
            with torch.no_grad():
                policy.model(tokens[:, :start], past_key_values=cache, use_cache=True)
        logits = policy.model(tokens[:, start:], past_key_values=cache, use_cache=True).logits[0] / 0.8
        mask = row == ROWS
        chosen = logits.log_softmax(-1)[POSITIONS[mask] - start, TOKENS[mask]]
        chosen.sum().backward()
    return gradients(policy)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_values_are_the_same_and_gradients_those_of_windows_alone(model_folder: str, dtype: torch.dtype) -> None:
    policy, _ = load_models(model_folder, dtype)
    through_all = log_probs(policy, None)
    through_all.sum().backward()
    whole = gradients(policy)
    policy.zero_grad()
    after_context = log_probs(policy, CONTEXT)
    torch.testing.assert_close(after_context, through_all, atol=1e-5, rtol=0)
    after_context.sum().backward()
    ours = gradients(policy)
    wanted = gradients_row_by_row(policy)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))
    assert float((ours - whole).norm() / whole.norm()) > 0.01


def test_no_context_at_all_is_the_usual_gradient(model_folder: str) -> None:
    policy, _ = load_models(model_folder)
    log_probs(policy, None).sum().backward()
    whole = gradients(policy)
    policy.zero_grad()
    log_probs(policy, torch.zeros(len(BATCH), dtype=torch.int64)).sum().backward()
    torch.testing.assert_close(gradients(policy), whole, rtol=1e-4, atol=1e-5)


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
    torch.testing.assert_close(log_probs(policy, CONTEXT), log_probs(policy, None), atol=1e-4, rtol=0)


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
        UpdateStep(Policy(Gemma2ForCausalLM(config)), critic, UpdateSettings(context_gradient=False))


def test_an_update_reports_the_same_and_moves_otherwise(model_folder: str) -> None:
    results = []
    for context_gradient in (True, False):
        policy, critic = load_models(model_folder)
        settings = UpdateSettings(lr=1e-3, context_gradient=context_gradient, micro_batch_tokens=60)
        targets = estimate_targets(critic, BATCH, settings)
        metrics = UpdateStep(policy, critic, settings).run(BATCH, targets, policy_version=9).metrics
        weights = torch.cat([parameter.flatten() for parameter in policy.parameters()])
        results.append((metrics, weights.detach()))
    (with_context, weights), (without, other_weights) = results
    for name in ("policy_loss", "entropy", "log_prob_gap_mean", "value_loss", "processed_tokens"):
        assert without[name] == pytest.approx(with_context[name], rel=1e-4)
    assert without["policy_grad_norm"] != pytest.approx(with_context["policy_grad_norm"], rel=1e-3)
    assert not torch.allclose(weights, other_weights, atol=1e-5)
