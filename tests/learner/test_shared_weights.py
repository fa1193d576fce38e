"""Critics and references on the policy's weights, against models of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_family
from host_config import learner_config
from learner_helpers import VOCABULARY, fill_adapters, make_fragments, parameters_of, save_tiny_model
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData

from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.learner.lora import merged_weights
from tppo_rl.learner.models import load_causal_lm
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.learner.sharding import gather_weights, load_weights
from tppo_rl.learner.shared_weights import once_each, share_weights

IDS = torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))
SHARED = {"critic": "shared", "critic_lora": {"rank": 2}, "on_policy_weights": ["critic"]}
LORA = {"lora": {"rank": 2}}


def build(folder: str, **config: Any) -> LanguageModelModule:
    return LanguageModelModule(
        observation_space=None, action_space=None, model_config={"policy_model": folder} | config
    )


def storages(model: torch.nn.Module) -> set[int]:
    return {weight.data_ptr() for name, weight in model.named_parameters() if ".lora_" not in name}


def test_a_critic_on_the_policy_moves_with_it(model_folder: str) -> None:
    module = build(model_folder, **SHARED)
    assert module.critic is not None
    backbone = module.critic.backbone
    assert storages(backbone) == storages(module.policy.model.base_model)
    with torch.no_grad():
        module.critic.value_head.weight.fill_(0.1)
        before = module.critic(IDS)
        # Adapters that have learned nothing do not change the backbone.
        own = build(model_folder).critic
        own.value_head.weight.fill_(0.1)
        assert torch.equal(before, own(IDS))
        for weight in module.policy.parameters():
            weight.mul_(1.1)
        moved = module.critic(IDS)
        for weight in own.backbone.parameters():
            weight.mul_(1.1)
        assert torch.equal(moved, own(IDS))
    assert not torch.equal(moved, before)


def test_its_training_leaves_the_policy_alone(model_folder: str) -> None:
    module = build(model_folder, **SHARED)
    assert module.critic is not None
    fill_adapters(module.critic)
    trained = [name for name, weight in module.critic.named_parameters() if weight.requires_grad]
    assert all(".lora_" in name or name.startswith("value_head.") for name in trained)
    module.critic(IDS).sum().backward()
    assert all(weight.grad is None for weight in module.policy.parameters())
    assert all(weight.requires_grad for weight in module.policy.parameters())


@pytest.mark.parametrize("layers", [None, 1])
def test_moved_models_keep_one_copy(model_folder: str, layers: int | None) -> None:
    """As when a learner takes its module to a GPU."""
    module = build(
        model_folder,
        **LORA,
        reference_model=model_folder,
        critic_layers=layers,
        on_policy_weights=["critic", "reference"],
    )
    assert module.critic is not None
    assert module.reference is not None
    for _ in range(2):
        assert storages(module.reference) == storages(module.policy)
        assert storages(module.critic.backbone) <= storages(module.policy)
        assert not any(weight.requires_grad for weight in module.reference.parameters())
        module.to(torch.float64)
        assert {weight.dtype for weight in module.parameters()} == {torch.float64}


def test_frozen_weights_of_adapted_models_compute_what_own_copies_do(model_folder: str) -> None:
    shared = build(model_folder, **LORA, reference_model=model_folder, on_policy_weights=["critic", "reference"])
    own = build(model_folder, **LORA, reference_model=model_folder)
    for module in (shared, own):
        assert module.critic is not None
        fill_adapters(module.policy)
        fill_adapters(module.critic)
        with torch.no_grad():
            module.critic.value_head.weight.fill_(0.1)
    assert torch.equal(parameters_of(shared), parameters_of(own))
    with torch.no_grad():
        assert torch.equal(shared.critic(IDS), own.critic(IDS))
        assert torch.equal(shared.reference.logits(IDS), own.reference.logits(IDS))
        assert torch.equal(shared.policy.logits(IDS), own.policy.logits(IDS))


def test_buffers_that_files_hold_are_shared_too() -> None:
    """Such as the biases of the router in DeepSeek-V3, which a model built without weights has at 0."""
    owner, model = torch.nn.BatchNorm1d(3), torch.nn.BatchNorm1d(3)
    assert owner.running_mean is not None
    owner.running_mean.fill_(2.0)
    share_weights(model, owner)
    assert model.running_mean is owner.running_mean
    owner.running_mean.fill_(3.0)
    assert torch.equal(torch.as_tensor(model.running_mean), torch.full((3,), 3.0))


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral"])
def test_mixtures_of_experts_share_and_merge(family: str, tmp_path: Path) -> None:
    folder = str(make_family(family, tmp_path / family))
    module = build(folder, **SHARED).to(torch.float64)
    assert module.critic is not None
    assert storages(module.critic.backbone) == storages(module.policy.model.base_model)
    adapted = build(folder, **LORA, on_policy_weights=["critic"])
    fill_adapters(adapted.policy)
    plain = load_causal_lm(folder, torch.float32)
    load_weights(plain, merged_weights(adapted.policy.model, gather_weights(adapted.policy.model)))
    with torch.no_grad():
        torch.testing.assert_close(plain(input_ids=IDS).logits, adapted.policy.logits(IDS), atol=1e-5, rtol=0)
        assert not torch.allclose(plain(input_ids=IDS).logits, build(folder).policy.logits(IDS), atol=1e-3)


def test_a_move_takes_each_tensor_once() -> None:
    moved: list[torch.Tensor] = []

    def move(tensor: torch.Tensor) -> torch.Tensor:
        moved.append(tensor)
        return tensor.clone()

    weight, move_once = torch.ones(3), once_each(move)
    first, second = move_once(weight), move_once(weight.view(3))
    assert first is second
    assert len(moved) == 1
    assert move_once(torch.ones(3)) is not first


def test_a_model_of_other_shapes_is_refused(model_folder: str, tmp_path: Path) -> None:
    other = load_causal_lm(save_tiny_model(tmp_path, seed=1), torch.float32)
    other.model.norm.weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"model\.norm\.weight .* has another shape"):
        share_weights(load_causal_lm(model_folder, torch.float32), other)


def train(group: Any, version: int) -> dict[str, Any]:
    table = table_from_fragments(make_fragments(version, version=version))
    return group.update(training_data=TrainingData(batch=table))[0][DEFAULT_MODULE_ID]


def test_updates_go_on_from_a_state_as_they_would_have(model_folder: str) -> None:
    """The state has no second copy of the backbone, and whoever loads it shares the loaded weights."""
    config = learner_config(model_folder, of_module=SHARED, critic_lr=1e-2, lr=1e-3)
    group = config.build_learner_group()
    for version in range(2):
        train(group, version)
    state = group.get_state()
    critic = state["learner"]["rl_module"][DEFAULT_MODULE_ID]["critic"]
    assert all(".lora_" in name or "value_head" in name for name in critic)
    other = config.copy(copy_frozen=False).build_learner_group()
    other.set_state(state)
    expected, found = train(group, 2), train(other, 2)
    assert {key: value for key, value in found.items() if "seconds" not in key} == {
        key: value for key, value in expected.items() if "seconds" not in key
    }
    modules = [one._learner.module[DEFAULT_MODULE_ID] for one in (group, other)]
    assert torch.equal(*map(parameters_of, modules))
    for module in modules:
        assert storages(module.critic.backbone) == storages(module.policy.model.base_model)
        assert any(
            np.any(weight.detach().numpy()) for name, weight in module.critic.named_parameters() if "lora_B" in name
        )
