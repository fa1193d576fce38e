from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from host_config import learner_config
from learner_helpers import VOCABULARY, fill_adapters, load_models, make_fragments, parameters_of
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from transformers import GPT2Config, GPT2LMHeadModel

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.core.fragments import table_from_fragments
from tppo_rl.learner.lora import add_adapters, check_adapters, merged_weights
from tppo_rl.learner.models import load_causal_lm
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.learner.sharding import gather_weights, load_weights

LORA = {"rank": 2, "alpha": 3.0}
IDS = torch.randint(0, VOCABULARY, (3, 20), generator=torch.Generator().manual_seed(0))


def build(folder: str, **config: Any) -> LanguageModelModule:
    text = gym.spaces.Text(max_length=64)
    spec = RLModuleSpec(
        module_class=LanguageModelModule,
        observation_space=text,
        action_space=text,
        model_config={"policy_model": folder, "lora": LORA} | config,
    )
    return spec.build()


def log_probs_of(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits.log_softmax(dim=-1)


def train(group: Any, seed: int, version: int = 0) -> Any:
    table = table_from_fragments(make_fragments(seed, version=version))
    return group.update(training_data=TrainingData(batch=table))[0][DEFAULT_MODULE_ID]


def test_the_policy_begins_as_the_model_that_it_adapts(model_folder: str) -> None:
    module = build(model_folder, reference_model=model_folder)
    plain = load_causal_lm(model_folder, torch.float32)
    assert torch.equal(log_probs_of(module.policy.model), log_probs_of(plain))
    for name, weight in module.get_state(inference_only=True).items():
        np.testing.assert_array_equal(weight, plain.state_dict()[name].numpy())
    assert module.reference is not None
    assert not any(parameter.requires_grad for parameter in module.reference.parameters())
    assert torch.equal(parameters_of(module.reference), parameters_of(plain))


def test_adapters_are_the_same_in_every_process(model_folder: str) -> None:
    torch.manual_seed(1)
    first = build(model_folder)
    torch.manual_seed(2)
    assert torch.equal(parameters_of(first), parameters_of(build(model_folder)))


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]])
def test_merged_weights_compute_the_same(model_folder: str, targets: str | list[str]) -> None:
    model = load_causal_lm(model_folder, torch.float32)
    before = log_probs_of(model)
    add_adapters(model, LORA | {"target_modules": targets})
    fill_adapters(model)
    adapted, weights = log_probs_of(model), parameters_of(model)
    merged = load_causal_lm(model_folder, torch.float32)
    load_weights(merged, merged_weights(model, gather_weights(model)))
    assert torch.equal(parameters_of(model), weights)
    assert float((adapted - before).abs().max()) > 0.1
    torch.testing.assert_close(log_probs_of(merged), adapted, atol=1e-5, rtol=0)


def test_merged_weights_of_transposed_layers() -> None:
    """GPT-2 keeps the weights of its linear layers the other way round."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    model, merged = GPT2LMHeadModel(config).eval(), GPT2LMHeadModel(config).eval()
    add_adapters(model, LORA)
    fill_adapters(model)
    load_weights(merged, merged_weights(model, gather_weights(model)))
    torch.testing.assert_close(log_probs_of(merged), log_probs_of(model), atol=1e-5, rtol=0)


def test_only_adapters_and_the_value_head_train(model_folder: str) -> None:
    group = learner_config(model_folder, lora=LORA).build_learner_group()
    module = group._learner.module[DEFAULT_MODULE_ID]
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    for version in range(3):
        train(group, version, version)
    changed = {name for name, weight in module.named_parameters() if not torch.equal(weight, before[name])}
    adapters = {name for name in before if "lora_" in name}
    assert len(adapters) == 2 * 2 * 2 * 7, "two models of two layers, each with seven linear layers with A and B"
    assert changed == adapters | {"critic.value_head.weight", "critic.value_head.bias"}
    step = group._learner._update_step
    assert step.policy_gradients.buffer.numel() == sum(
        parameter.numel() for parameter in module.policy.parameters() if parameter.requires_grad
    )


@pytest.mark.parametrize("through", ["state", "path"])
def test_checkpoints_hold_adapters_alone_and_go_on(model_folder: str, tmp_path: Path, through: str) -> None:
    group = learner_config(model_folder, lora=LORA).build_learner_group()
    for version in range(2):
        train(group, version, version)
    state, path = group.get_state(), group.save_to_path(tmp_path / "checkpoint")
    weights = state["learner"]["rl_module"][DEFAULT_MODULE_ID]
    assert all("lora_" in name or "value_head" in name for part in weights.values() for name in part)
    expected = train(group, 2, 2)
    other = learner_config(model_folder, lora=LORA).build_learner_group()
    if through == "state":
        other.set_state(state)
    else:
        other.restore_from_path(path)
    again = train(other, 2, 2)
    for name in ("policy_loss", "policy_grad_norm", "critic_grad_norm"):
        assert again[name].peek() == expected[name].peek(), name
    modules = [learner._learner.module[DEFAULT_MODULE_ID] for learner in (group, other)]
    assert torch.equal(parameters_of(modules[0]), parameters_of(modules[1]))


def test_a_checkpoint_is_small(tmp_path: Path) -> None:
    """Weights and optimizer state of the shipped model (0.6M parameters), on disk."""
    folder = resolve_model("tppo_rl/arithmetic-chain")
    sizes = {}
    for name, lora in {"adapters": {"rank": 4}, "whole": None}.items():
        group = learner_config(folder, lora=lora).build_learner_group()
        train(group, 0)
        path = Path(group.save_to_path(tmp_path / name))
        sizes[name] = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    print(f"checkpoint with adapters of rank 4: {sizes['adapters']:,} bytes, of all weights: {sizes['whole']:,}")
    assert sizes["adapters"] < 0.1 * sizes["whole"]


def test_weights_of_other_adapters_are_refused(model_folder: str) -> None:
    module = build(model_folder)
    with pytest.raises(RuntimeError, match="not those of the adapters"):
        module.set_state(module.get_state(inference_only=True))
    with pytest.raises(RuntimeError, match="not those of the adapters"):
        module.set_state(build(model_folder, lora=None).get_state())
    with pytest.raises(RuntimeError, match=r"lora\.rank differs"):
        module.set_state(build(model_folder, lora={"rank": 5}).get_state())


@pytest.mark.parametrize(
    ("targets", "message"),
    [(["q_proj", "query"], "no linear layer 'query'.*q_proj"), (["lm_head"], "output layer"), (["embed_tokens"], "no")],
)
def test_targets_that_are_not_there_are_refused(model_folder: str, targets: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(model_folder, lora={"rank": 2, "target_modules": targets})


def test_log_probs_of_policy_and_values_of_critic_see_the_adapters(model_folder: str) -> None:
    policy, critic = load_models(model_folder, lora=LORA)
    plain_policy, plain_critic = load_models(model_folder)
    rows, positions = torch.tensor([0, 1]), torch.tensor([3, 7])
    arguments = (IDS, rows, positions, IDS[rows, positions + 1])
    expected = log_probs_of(policy.model)[rows, positions, IDS[rows, positions + 1]]
    with torch.no_grad():
        log_probs = policy(*arguments, temperature=1.0).log_probs
        torch.testing.assert_close(log_probs, expected, atol=1e-5, rtol=0)
        assert float((log_probs - plain_policy(*arguments, temperature=1.0).log_probs).abs().min()) > 1e-4
        assert float((critic(IDS) - plain_critic(IDS)).abs().max()) > 1e-3


def test_what_trains_is_float32_beside_weights_of_half_precision(model_folder: str) -> None:
    module = build(model_folder, dtype="bfloat16", weights_dtype="bfloat16")
    dtypes = {name: parameter.dtype for name, parameter in module.named_parameters() if parameter.requires_grad}
    assert set(dtypes.values()) == {torch.float32}
    assert "critic.value_head.weight" in dtypes
    frozen = {parameter.dtype for parameter in module.parameters() if not parameter.requires_grad}
    assert frozen == {torch.bfloat16}
    fill_adapters(module.policy)
    merged = module.get_state(inference_only=True)
    assert {weight.dtype for weight in merged.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("models", "says"),
    [
        ({"lora": {"rank": 2, "target_modules": ["q_proj", "no_proj"]}}, r"^lora\.target_modules: .*'no_proj'; it has .*q_proj"),
        ({"critic": "shared", "critic_lora": {"rank": 2, "target_modules": ["query"]}}, r"^critic_lora\.target_modules: .*'query'"),
        ({"lora": {"rank": 2, "target_modules": ["lm_head"]}}, r"^lora\.target_modules: 'lm_head' is the output layer"),
    ],
)  # fmt: skip
def test_layers_that_a_model_lacks_are_named_before_a_start(models: dict[str, Any], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        check_adapters(Options.of(policy_model="tppo_rl/arithmetic-chain", **models))


def test_layers_that_a_model_has_are_taken() -> None:
    chosen = {"rank": 2, "target_modules": ["q_proj", "v_proj"]}
    check_adapters(Options.of(policy_model="tppo_rl/arithmetic-chain", lora=chosen))
    check_adapters(Options.of(policy_model="tppo_rl/arithmetic-chain", lora={"rank": 2}))
