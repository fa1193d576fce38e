from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from learner_helpers import VOCABULARY, load_models
from ray.rllib.core import DEFAULT_MODULE_ID
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from tppo_rl.learner import models
from tppo_rl.learner.models import (
    Critic,
    Policy,
    compute_logits_in_float32,
    load_causal_lm,
    parse_dtype,
    recompute_activations,
    transformer_blocks,
)
from tppo_rl.rollout.weight_sync import _log_probs_on_learner


def plain_log_probs(model: PreTrainedModel, sequence: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probs of tokens 1 … n-1 of one unpadded sequence by the model's own forward pass."""
    logits = model(input_ids=sequence[None]).logits[0, :-1] / temperature
    return logits.log_softmax(dim=-1).gather(1, sequence[1:, None])[:, 0]


def padded_log_probs(policy: Policy, sequences: list[torch.Tensor], temperature: float, padding: int) -> torch.Tensor:
    width = max(map(len, sequences)) + padding
    input_ids = torch.stack([torch.nn.functional.pad(s, (0, width - len(s)), value=7) for s in sequences])
    rows = torch.cat([torch.full((len(s) - 1,), row) for row, s in enumerate(sequences)])
    positions = torch.cat([torch.arange(len(s) - 1) for s in sequences])
    return policy(input_ids, rows, positions, torch.cat([s[1:] for s in sequences]), temperature=temperature).log_probs


def random_sequences(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, VOCABULARY, (length,), generator=generator) for length in (4, 11, 7)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("padding", [0, 13])
def test_log_probs_equal_a_plain_forward_pass(model_folder: str, temperature: float, padding: int) -> None:
    policy, _ = load_models(model_folder)
    sequences = random_sequences(0)
    expected = torch.cat([plain_log_probs(policy.model, sequence, temperature) for sequence in sequences])
    torch.testing.assert_close(padded_log_probs(policy, sequences, temperature, padding), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_logits_in_float32(model_folder: str, dtype: torch.dtype) -> None:
    """They are those of the same hidden states with the layer's weights rounded, and the gradient goes through them."""
    model = load_causal_lm(model_folder, dtype)
    rounded = Policy(model, dtype)
    (sequence, *_) = random_sequences(0)
    with rounded.autocast(), torch.no_grad():
        hidden = model.base_model(input_ids=sequence[None], use_cache=False).last_hidden_state[0, :-1].float()
    head = model.get_output_embeddings()
    logits = hidden @ head.weight.detach().to(dtype).float().T
    expected = logits.log_softmax(-1).gather(1, sequence[1:, None])[:, 0]
    compute_logits_in_float32(model, dtype)
    policy = Policy(model, dtype)
    log_probs = padded_log_probs(policy, [sequence], 1.0, padding=2)
    torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
    assert policy.logits(sequence[None]).dtype == torch.float32
    log_probs.sum().backward()
    assert head.weight.grad is not None


def test_a_model_of_flash_attention_is_made_where_that_does_not_run(model_folder: str) -> None:
    """Policies are made on a CPU in float32, before they go to their device."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise NotImplementedError("this kernel does not run here")

    AttentionInterface.register("elsewhere", refuse)
    policy = Policy(load_causal_lm(model_folder, torch.float32, attention="elsewhere"))
    assert policy._head_suffices
    with pytest.raises(NotImplementedError):
        policy.logits(torch.tensor([[1, 2, 3]]))


def test_log_probs_of_an_evaluation_never_hold_all_logits(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_models(model_folder)
    sequences = random_sequences(3)
    expected = [plain_log_probs(policy.model, sequence, 0.7).detach().numpy() for sequence in sequences]
    monkeypatch.setattr(models, "MAX_LOGITS", 3 * VOCABULARY)
    rows: list[int] = []
    policy.model.get_output_embeddings().register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    learner = SimpleNamespace(module={DEFAULT_MODULE_ID: SimpleNamespace(policy=policy)})
    found = _log_probs_on_learner(learner, sequences=[s.tolist() for s in sequences], temperature=0.7)
    assert max(rows) == 3
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_other_architectures() -> None:
    """GPT-2 has dropout; Gemma 2 caps its logits after the output layer and has sliding windows."""
    torch.manual_seed(0)
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64))
    gemma2 = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            intermediate_size=64,
            final_logit_softcapping=0.5,
            sliding_window=4,
            initializer_range=0.5,
        )
    )
    sequences = random_sequences(1)
    for model in (gpt2, gemma2):
        policy = Policy(model)
        policy.train()
        expected = torch.cat([plain_log_probs(model, sequence, 1.0) for sequence in sequences])
        torch.testing.assert_close(padded_log_probs(policy, sequences, 1.0, 3), expected, atol=1e-5, rtol=0)
        assert Critic(model)(sequences[0][None]).tolist() == [[0.0] * 4]


def test_logits_in_parts_change_nothing(model_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, _ = load_models(model_folder)
    gradients = []
    for limit in (models.MAX_LOGITS, 3 * VOCABULARY):
        monkeypatch.setattr(models, "MAX_LOGITS", limit)
        policy.zero_grad()
        log_probs = padded_log_probs(policy, random_sequences(2), 0.9, 0)
        log_probs.square().sum().backward()
        gradients.append(torch.cat([parameter.grad.reshape(-1) for parameter in policy.parameters()]))
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-5)


def gradients_and_saved_bytes(folder: str, *, recompute: bool) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Loss and gradients of policy and critic, and the bytes of tensors that autograd keeps between the passes."""
    policy, critic = load_models(folder)
    for model in (policy, critic) if recompute else ():
        recompute_activations(model)
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(0, VOCABULARY, (4, 200), generator=torch.Generator().manual_seed(0))
    rows, positions = torch.ones(4, 190).nonzero(as_tuple=True)
    # Weights are saved as well, and are no activations.
    weights = {parameter.untyped_storage().data_ptr() for model in (policy, critic) for parameter in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        log_probs = policy(ids, rows, positions, ids[rows, positions + 1], temperature=0.9).log_probs
        loss = log_probs.square().mean() + critic(ids).square().mean()
    loss.backward()
    gradients = [parameter.grad.reshape(-1) for model in (policy, critic) for parameter in model.parameters()]
    return loss.detach(), torch.cat(gradients), sum(size for start, size in saved.items() if start not in weights)


def test_recomputed_activations_change_memory_alone(model_folder: str) -> None:
    loss, gradient, saved = gradients_and_saved_bytes(model_folder, recompute=False)
    again, gradient_again, saved_again = gradients_and_saved_bytes(model_folder, recompute=True)
    print(f"activations saved: {saved / 1e6:.2f} MB, recomputed: {saved_again / 1e6:.2f} MB")
    torch.testing.assert_close(again, loss, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient_again, gradient, atol=1e-6, rtol=1e-6)
    # The inputs of the 2 blocks of both models, float32 [4, 200, 32], are kept by the blocks themselves.
    assert saved_again + 4 * 4 * 200 * 32 * 4 < 0.5 * saved


def test_recomputed_blocks_leave_dropout_off() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=3, n_head=4, n_positions=64)
    policy = Policy(GPT2LMHeadModel(config))
    names = list(policy.state_dict())
    sequences = random_sequences(5)
    expected = padded_log_probs(policy, sequences, 1.0, 0)
    recompute_activations(policy.model)
    policy.train()
    assert len(transformer_blocks(policy)) == 3
    assert list(policy.state_dict()) == names
    torch.testing.assert_close(padded_log_probs(policy, sequences, 1.0, 0), expected, atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="gradient_checkpointing=True: Linear has no layers"):
        recompute_activations(torch.nn.Linear(2, 2))


def test_a_cold_critic_says_zero_and_padding_changes_nothing(model_folder: str) -> None:
    _, cold = load_models(model_folder, value_head=False)
    sequence = random_sequences(3)[1]
    assert not cold(sequence[None]).any()
    _, critic = load_models(model_folder)
    padded = torch.nn.functional.pad(sequence, (0, 9), value=5)
    values = critic(sequence[None])
    assert values.shape == (1, 11)
    torch.testing.assert_close(critic(padded[None])[:, :11], values, atol=1e-6, rtol=0)


def test_bfloat16_computes_with_float32_weights(model_folder: str) -> None:
    policy = Policy(load_causal_lm(model_folder, torch.bfloat16), torch.bfloat16)
    exact, _ = load_models(model_folder)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    sequences = random_sequences(4)
    log_probs = padded_log_probs(policy, sequences, 1.0, 0)
    assert log_probs.dtype == torch.float32
    gap = (log_probs.detach() - padded_log_probs(exact, sequences, 1.0, 0).detach()).abs()
    assert 0 < float(gap.max()) < 0.3


def test_bfloat16_weights(model_folder: str) -> None:
    policy, critic = load_models(model_folder, torch.bfloat16, weights_dtype=torch.bfloat16)
    exact, exact_critic = load_models(model_folder)
    assert {parameter.dtype for model in (policy, critic) for parameter in model.parameters()} == {torch.bfloat16}
    sequences = random_sequences(4)
    log_probs, values = padded_log_probs(policy, sequences, 1.0, 0), critic(sequences[0][None])
    assert (log_probs.dtype, values.dtype) == (torch.float32, torch.float32)
    gap = (log_probs - padded_log_probs(exact, sequences, 1.0, 0)).detach().abs()
    assert 0 < float(gap.max()) < 0.5
    torch.testing.assert_close(values, exact_critic(sequences[0][None]), atol=0.1, rtol=0.1)


def test_wrong_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="float8"):
        parse_dtype("float8")
    with pytest.raises(ValueError, match="no language model"):
        load_causal_lm(str(tmp_path), torch.float32)
