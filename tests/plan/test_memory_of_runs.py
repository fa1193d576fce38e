"""The memory of a run against real models and what torch keeps for a backward pass."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
import torch
from families import FAMILIES, make_family

from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.learner.models import Critic, load_causal_lm, recompute_activations
from tppo_rl.plan.memory import GIB, check_memory, machine_memory, memory_of, with_checkpoint
from tppo_rl.plan.model_shape import Shape

TOKENS = 512


@pytest.mark.parametrize("name", FAMILIES)
def test_parameters_are_those_of_the_model(name: str, tmp_path: Path) -> None:
    folder = str(make_family(name, tmp_path / "model"))
    shape, model = Shape.of(folder), load_causal_lm(folder, torch.float32)
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    # The value head is one row.
    critic = Critic(load_causal_lm(folder, torch.float32, num_layers=1))
    own = sum(parameter.numel() for parameter in critic.backbone.parameters())
    assert shape.first_layers(1).parameters == pytest.approx(own, rel=0.02)


def kept_bytes(folder: str, dtype: str, *, checkpointing: bool) -> int:
    """Bytes of all tensors that torch keeps for the backward pass of a backbone, weights left out."""
    model = load_causal_lm(folder, torch.float32)
    if checkpointing:
        recompute_activations(model)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), autocast:
        states = model.base_model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False)
    del states
    return sum(kept.values())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["llama3", "qwen2", "mistral"])
def test_activations_are_what_torch_keeps(name: str, dtype: str, tmp_path: Path) -> None:
    folder = str(make_family(name, tmp_path / "model", wide=True))
    options = Options.of(policy_model=folder, dtype=dtype, micro_batch_tokens=TOKENS, critic=None)
    (predicted,) = [part.size for part in memory_of(options).parts if part.name == "activations"]
    assert predicted == pytest.approx(kept_bytes(folder, dtype, checkpointing=False), rel=0.03)


def test_recomputed_activations_take_less(tmp_path: Path) -> None:
    folder = str(make_family("llama3", tmp_path / "model", wide=True))

    def predicted(checkpointing: bool) -> int:
        options = Options.of(policy_model=folder, gradient_checkpointing=checkpointing, micro_batch_tokens=TOKENS)
        return sum(part.size for part in memory_of(options).parts if part.name == "activations")

    between = kept_bytes(folder, "float32", checkpointing=True)
    assert predicted(checkpointing=True) == pytest.approx(between, rel=0.01)
    assert predicted(checkpointing=True) < predicted(checkpointing=False)


def test_processes_and_parts(tmp_path: Path) -> None:
    folder = str(make_family("qwen2", tmp_path / "model"))
    parameters = Shape.of(folder).parameters
    memory = memory_of(Options.of(policy_model=folder, kl_coef=0.1, num_learners=2, num_env_runners=3))
    assert memory.processes == {"driver": 1, "learner": 2, "env-runner": 3}
    sizes = {(part.process, part.name): part.size for part in memory.parts}
    assert sizes["learner", "policy"] == 16 * parameters
    assert sizes["learner", "reference"] == 4 * parameters
    assert sizes["env-runner", "weights"] == 4 * parameters
    assert sizes["env-runner", "keys and values"] == GIB
    assert memory.total == sum(memory.of(process) * number for process, number in memory.processes.items())
    alone = memory_of(Options.of(policy_model=folder, num_env_runners=0, mode="sync"))
    assert alone.processes == {"driver": 1}
    assert {part.process for part in alone.parts} == {"driver"}
    sharded = memory_of(Options.of(policy_model=folder, num_learners=2, distributed="fsdp"))
    assert {part.size for part in sharded.parts if part.name == "policy"} == {8 * parameters}


def test_weights_that_models_have_in_common_are_counted_once(tmp_path: Path) -> None:
    folder = str(make_family("qwen2", tmp_path / "model"))
    shape = Shape.of(folder)
    parameters, adapters = shape.parameters, shape.adapters(16, "all-linear")
    backbone = shape.first_layers(None).parameters

    def sizes(**changes: object) -> dict[str, int]:
        memory = memory_of(Options.of(policy_model=folder, kl_coef=0.1, **changes))
        return {part.name: part.size for part in memory.parts if part.process == "driver"}

    shared = sizes(critic="shared")
    assert (shared["policy"], shared["critic"], shared["reference"]) == (16 * parameters, 16 * adapters, 4 * parameters)
    adapted = sizes(lora={"rank": 16})
    assert (adapted["policy"], adapted["critic"], adapted["reference"]) == (
        4 * parameters + 16 * adapters,
        16 * adapters,
        0,
    )
    other = str(make_family("qwen2", tmp_path / "other"))
    elsewhere = sizes(lora={"rank": 16}, critic=other, reference_model=other)
    assert (elsewhere["critic"], elsewhere["reference"]) == (4 * backbone + 16 * adapters, 4 * parameters)
    sharded = memory_of(
        Options.of(policy_model=folder, num_learners=2, distributed="fsdp", lora={"rank": 16}, kl_coef=0.1)
    )
    of_learner = {part.name: part.size for part in sharded.parts if part.process == "learner"}
    assert of_learner["reference"] == 2 * parameters
    kept = [
        with_checkpoint(memory_of(options), options).parts[-1].size
        for options in (Options.of(policy_model=folder, critic="shared"), Options.of(policy_model=folder))
    ]
    assert kept == [12 * (parameters + adapters), 12 * (parameters + backbone)]


def test_what_this_machine_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    options = Options.of(policy_model=str(make_family("qwen2", tmp_path / "model")))
    memory = memory_of(options)
    check_memory(memory, options, machine_memory())
    with pytest.raises(
        OptionError, match=r"policy_model=.*one env-runner needs 1\.8 GiB, and this machine has 1\.0 GiB"
    ):
        check_memory(memory, options, GIB)
