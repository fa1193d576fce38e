from __future__ import annotations

from typing import Any

import pytest
import torch
from learner_helpers import VOCABULARY, estimate_targets, load_models, make_fragments
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedModel

from tppo_rl.config.options import Options
from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.models import Critic, Policy, load_causal_lm
from tppo_rl.learner.packing import check_packing, model_input
from tppo_rl.learner.sampled_log_probs import sampled_log_probs, with_kl_rewards
from tppo_rl.learner.targets import Targets
from tppo_rl.learner.update import UpdateStep
from tppo_rl.learner.values import critic_values

BATCH = batch_from_fragments(make_fragments(0, 9))
CPU = torch.device("cpu")


def test_layouts_by_hand() -> None:
    rows, lengths = torch.tensor([4, 1]), torch.tensor([3, 2])
    tokens = [BATCH.tokens[BATCH.offsets[row] :][:length] for row, length in zip(rows, lengths, strict=True)]
    padded = model_input(BATCH, rows, lengths, CPU, packing=False)
    assert padded.input_ids.tolist() == [tokens[0].tolist(), [*tokens[1].tolist(), 0]]
    assert padded.position_ids is None
    packed = model_input(BATCH, rows, lengths, CPU, packing=True)
    assert packed.input_ids.tolist() == [torch.cat(tokens).tolist()]
    assert packed.position_ids is not None
    assert packed.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    within, positions = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 1])
    for layout in (padded, packed):
        expected = [tokens[row][position] for row, position in zip(within, positions, strict=True)]
        assert layout.input_ids[layout.places(within, positions)].tolist() == expected


@pytest.mark.parametrize("lora", [None, {"rank": 2}])
@pytest.mark.parametrize("budget", [10_000, 40])
def test_log_probs_and_values_equal_the_padded_ones(
    model_folder: str, budget: int, lora: dict[str, Any] | None
) -> None:
    policy, critic = load_models(model_folder, lora=lora)
    for sampled in (BATCH.window, BATCH.all_sampled):
        padded, packed = (
            sampled_log_probs(policy, BATCH, sampled, temperature=0.8, micro_batch_tokens=budget, packing=packing)
            for packing in (False, True)
        )
        torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)
    for padded, packed in zip(
        critic_values(critic, BATCH, budget), critic_values(critic, BATCH, budget, packing=True), strict=True
    ):
        torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)


@pytest.mark.slow  # torch compiles the kernel for each number of tokens.
def test_packed_log_probs_of_flex_attention_equal_the_padded_ones(model_folder: str) -> None:
    """Only forwards: torch has no backward pass of it on a CPU."""
    padded_policy, packed_policy = (
        Policy(load_causal_lm(model_folder, torch.float32, attention=kernels)) for kernels in ("sdpa", "flex_attention")
    )
    check_packing(packed_policy)
    padded, packed = (
        sampled_log_probs(policy, BATCH, BATCH.window, temperature=0.8, micro_batch_tokens=10_000, packing=packing)
        for policy, packing in ((padded_policy, False), (packed_policy, True))
    )
    torch.testing.assert_close(packed, padded, atol=1e-5, rtol=0)


def updated(folder: str, packing: bool, options: dict[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
    """Gradients and metrics of one update."""
    plain = {"lr": 1e-4, "critic_lr": 1e-4, "grad_clip": None, "critic_grad_clip": None}
    options = Options.of(**(plain | options), packing=packing)
    policy, critic = load_models(folder)
    batch = BATCH
    if options.policy_loss.kl_in == "reward":
        batch = with_kl_rewards(batch, policy, load_models(folder)[0], options)
    targets = estimate_targets(critic, batch, options)
    if options.policy_loss.kl_coef and options.policy_loss.kl_in == "loss":
        reference = sampled_log_probs(
            policy, batch, batch.window, temperature=1.0, micro_batch_tokens=60, packing=packing
        )
        targets = Targets(targets.advantages, targets.values, targets.value_batch, reference)
    step = UpdateStep(policy, critic, options)
    metrics = step.run(batch, targets, policy_version=0).metrics
    assert step.critic_gradients is not None
    gradients = torch.cat([step.policy_gradients.buffer, step.critic_gradients.buffer]).clone()
    return gradients, metrics


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batch_tokens": 50},
        {"off_policy_correction": "none", "entropy_coef": 0.1},
        {"off_policy_correction": "decoupled", "sequence_mask": (0.1, 10.0)},
        {"positive_lm_coef": 0.5, "value_clip": 0.2, "micro_batch_tokens": 60},
        {"kl_coef": 0.1, "kl_in": "loss"},
        {"kl_coef": 0.1, "kl_in": "reward"},
        {"critic_targets": "include_unfinished", "boundary_value": "bootstrap"},
    ],
)
def test_an_update_equals_the_padded_one(model_folder: str, options: dict[str, Any]) -> None:
    gradients, metrics = updated(model_folder, False, options)
    packed_gradients, packed_metrics = updated(model_folder, True, options)
    assert gradients.any()
    torch.testing.assert_close(packed_gradients, gradients, atol=1e-5, rtol=1e-5)
    assert packed_metrics["padding_fraction"] == 0.0 < metrics["padding_fraction"]
    for name, value in metrics.items():
        if name != "padding_fraction" and not name.endswith("seconds"):
            assert packed_metrics[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def other_architectures() -> list[PreTrainedModel]:
    torch.manual_seed(0)
    gemma2 = Gemma2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        sliding_window=4,
    )
    gpt2 = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return [Gemma2ForCausalLM(gemma2), GPT2LMHeadModel(gpt2)]


class Joined(torch.nn.Module):
    """A backbone that takes what stands in a row for one sequence."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self._backbone = backbone

    def forward(self, input_ids: torch.Tensor, position_ids: Any = None, use_cache: bool = False) -> Any:
        return self._backbone(input_ids=input_ids, use_cache=use_cache)


def test_models_that_do_not_keep_sequences_apart_are_refused(model_folder: str) -> None:
    for model in other_architectures():
        check_packing(Policy(model))
        check_packing(Critic(model))
    policy, critic = load_models(model_folder)
    critic.backbone = Joined(critic.backbone)
    with pytest.raises(ValueError, match="packing=True: in Joined packed sequences see one another"):
        UpdateStep(policy, critic, Options.of(packing=True))
    UpdateStep(policy, critic, Options.of())
