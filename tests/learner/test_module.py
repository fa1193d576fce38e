from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from learner_helpers import load_models, make_fragments, parameters_of, save_tiny_model
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from tppo_rl.learner.batch import batch_from_fragments
from tppo_rl.learner.module import TRAIN_BATCH, LanguageModelModule


def build(folder: str, *, inference_only: bool = False, **config: Any) -> LanguageModelModule:
    text = gym.spaces.Text(max_length=64)
    spec = RLModuleSpec(
        module_class=LanguageModelModule,
        observation_space=text,
        action_space=text,
        inference_only=inference_only,
        model_config={"policy_model": folder, "critic": "separate", "dtype": "float32"} | config,
    )
    return spec.build()


def test_inference_state_is_the_policy_under_its_own_names(model_folder: str) -> None:
    module = build(model_folder)
    weights = module.get_state(inference_only=True)
    plain, _ = load_models(model_folder)
    # The output layer is tied to the embedding.
    assert weights.keys() == plain.model.state_dict().keys() - {"lm_head.weight"}
    for name, weight in weights.items():
        np.testing.assert_array_equal(weight, plain.model.state_dict()[name].numpy())


def test_states_are_copies(model_folder: str) -> None:
    module = build(model_folder)
    weights = module.get_state()["policy"]
    for_engines = module.get_state(inference_only=True)
    before = {name: weight.copy() for name, weight in weights.items()}
    assert all(np.array_equal(weight, before[name]) for name, weight in for_engines.items())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    assert all(np.array_equal(weights[name], before[name]) for name in before)
    # What engines load is copied by them, and is not copied before.
    assert all(np.array_equal(weight, before[name] + 1.0) for name, weight in for_engines.items())


def test_both_forms_of_state_are_accepted(model_folder: str, tmp_path) -> None:
    source = build(save_tiny_model(tmp_path, seed=1))
    assert source.critic is not None
    with torch.no_grad():
        source.critic.value_head.bias.fill_(3.0)
    whole, policy_only = build(model_folder), build(model_folder)
    whole.set_state(source.get_state())
    assert torch.equal(parameters_of(whole), parameters_of(source))
    assert policy_only.critic is not None
    critic_before = parameters_of(policy_only.critic)
    policy_only.set_state(source.get_state(inference_only=True))
    assert torch.equal(parameters_of(policy_only.policy), parameters_of(source.policy))
    assert torch.equal(parameters_of(policy_only.critic), critic_before)
    light = build(model_folder, inference_only=True)
    light.set_state(source.get_state())
    assert light.critic is None
    assert torch.equal(parameters_of(light.policy), parameters_of(source.policy))


def test_weights_of_another_model_are_refused(model_folder: str) -> None:
    with pytest.raises(RuntimeError, match=r"lm_head\.weight"):
        build(model_folder).set_state({"unknown.weight": np.zeros(3)})


def test_critic_may_start_elsewhere_or_not_at_all(model_folder: str, tmp_path) -> None:
    other = save_tiny_model(tmp_path, seed=2)
    module = build(model_folder, critic=other)
    assert module.critic is not None
    expected = load_models(other)[0].model.base_model
    assert torch.equal(parameters_of(module.critic.backbone), parameters_of(expected))
    without = build(model_folder, critic=None)
    assert without.get_state().keys() == {"policy"}
    with pytest.raises(ValueError, match="no critic"):
        without.compute_values({TRAIN_BATCH: None})


def test_a_critic_of_the_first_layers(model_folder: str) -> None:
    module, whole = build(model_folder, critic_layers=1), build(model_folder)
    assert module.critic is not None
    assert whole.critic is not None
    backbone, full = module.critic.backbone, whole.critic.backbone
    assert len(backbone.layers) == 1
    assert len(full.layers) == 2
    assert torch.equal(parameters_of(backbone.layers[0]), parameters_of(full.layers[0]))
    input_ids = torch.tensor([[1, 5, 3, 2]])
    hidden = full.layers[0](
        full.embed_tokens(input_ids),
        position_embeddings=full.rotary_emb(full.embed_tokens(input_ids), torch.arange(4)[None]),
    )
    assert torch.equal(backbone(input_ids=input_ids).last_hidden_state, full.norm(hidden))
    assert module.policy.model.config.num_hidden_layers == 2
    other = build(model_folder, critic_layers=1)
    with torch.no_grad():
        module.critic.value_head.bias.fill_(3.0)
    other.set_state(module.get_state())
    assert other.critic is not None
    assert torch.equal(parameters_of(other.critic), parameters_of(module.critic))
    assert torch.equal(parameters_of(build(model_folder, critic_layers=2).critic), parameters_of(whole.critic))


def test_bfloat16_weights_are_saved_as_float32(model_folder: str) -> None:
    exact = build(model_folder)
    halved = build(model_folder, dtype="bfloat16", weights_dtype="bfloat16", gradient_checkpointing=True)
    assert {parameter.dtype for parameter in halved.parameters()} == {torch.bfloat16}
    state = halved.get_state()
    assert {weight.dtype for part in state.values() for weight in part.values()} == {np.dtype(np.float32)}
    exact.set_state(state)
    assert torch.equal(parameters_of(exact), parameters_of(halved).float())
    halved.set_state(exact.get_state())
    assert torch.equal(parameters_of(exact), parameters_of(halved).float())


def test_values_and_logits(model_folder: str) -> None:
    module = build(model_folder)
    batch = batch_from_fragments(make_fragments(0, 3))
    assert not module.compute_values({TRAIN_BATCH: batch}).window.any()
    ids = torch.tensor([[1, 2, 3]])
    logits = module.forward_inference({Columns.OBS: ids})[Columns.ACTION_DIST_INPUTS]
    assert torch.equal(logits, module.policy.model(input_ids=ids).logits.detach())


@pytest.mark.parametrize(
    ("config", "message"),
    [({"policy": "x"}, "unknown keys"), ({"policy_model": ""}, "policy_model"), ({"dtype": "int4"}, "dtype")],
)
def test_bad_model_config_is_refused(model_folder: str, config: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(model_folder, **config)
