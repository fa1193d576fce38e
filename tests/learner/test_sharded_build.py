"""Sharded models that are built without weights: what they hold, and how much memory each process takes for it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_family
from group_helpers import MIB, OTHER_MEMORY, Peak, run_learners
from learner_helpers import save_tiny_model
from safetensors.torch import load_file, save_file

from tppo_rl.learner.lora import add_adapters
from tppo_rl.learner.models import Critic, Policy, load_causal_lm, transformer_blocks
from tppo_rl.learner.sharded_build import files_in_parts, place
from tppo_rl.learner.sharding import gather_weights, load_weights

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


def pair_of(source: str, *, lora: dict[str, Any] | None = None, empty: bool, **options: Any) -> tuple[Policy, Critic]:
    models = [load_causal_lm(source, torch.float32, empty=empty, **options) for _ in range(2)]
    for model in models if lora is not None else ():
        add_adapters(model, lora or {})
    policy, critic = Policy(models[0]), Critic(models[1])
    with torch.no_grad():
        critic.value_head.bias.fill_(0.25)
    return policy, critic


def compare_with_whole(folders: dict[str, str], lora: dict[str, Any] | None) -> dict[str, Any]:
    """Names of families whose weights or outputs are not those of the model that transformers loads."""
    wrong = []
    for family, folder in folders.items():
        ids = torch.tensor([[3, 4, 5, 6]])
        for whole, ours in zip(
            pair_of(folder, lora=lora, empty=False), pair_of(folder, lora=lora, empty=True), strict=True
        ):
            place(ours, folder, CPU)
            expected, found = gather_weights(whole), gather_weights(ours)
            same = expected.keys() == found.keys() and all(np.array_equal(expected[n], found[n]) for n in expected)
            grads = [{n: p.requires_grad for n, p in model.named_parameters()} for model in (whole, ours)]
            with torch.no_grad():
                outputs = [model.logits(ids) if isinstance(model, Policy) else model(ids) for model in (whole, ours)]
            if not (same and grads[0] == grads[1] and torch.equal(*outputs)):
                wrong.append(f"{family}, {type(whole).__name__}")
    return {"wrong": wrong, "number": len(folders)}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_weights_are_those_of_whole_models(tmp_path: Path, lora: dict[str, Any] | None) -> None:
    """In 3 processes, among which rows do not divide."""
    families = ("qwen2", "qwen3_moe", "mixtral", "gemma2", "phi3", "gpt2") if lora is None else ("qwen2", "gpt2")
    folders = {family: str(make_family(family, tmp_path / family)) for family in families}
    for outcome in run_learners(compare_with_whole, 3, tmp_path / "group", folders, lora):
        assert outcome == {"wrong": [], "number": len(folders)}


def of_files(source: str, num_layers: int | None) -> dict[str, np.ndarray]:
    _, critic = pair_of(source, empty=True, num_layers=num_layers)
    place(critic, source, CPU)
    return gather_weights(critic)


@pytest.mark.timeout(120)
def test_a_model_in_several_files_and_the_first_layers_of_it(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "one")
    load_causal_lm(source, torch.float32).save_pretrained(tmp_path / "many", max_shard_size="20KB")
    many = str(tmp_path / "many")
    files = files_in_parts(many)
    assert files is not None
    assert len(files) > 2
    _, whole = pair_of(source, empty=False, num_layers=1)
    for found in run_learners(of_files, 2, tmp_path / "group", many, 1):
        assert found.keys() == gather_weights(whole).keys()
        assert all(np.array_equal(found[name], weight) for name, weight in gather_weights(whole).items())


def refusals(folders: dict[str, str]) -> dict[str, str]:
    messages = {}
    for name, folder in folders.items():
        policy, _ = pair_of(folder, empty=True)
        with pytest.raises(ValueError, match="weight") as caught:
            place(policy, folder, CPU)
        messages[name] = str(caught.value)
    return messages


@pytest.mark.timeout(120)
def test_files_that_lack_weights_or_contradict_themselves_are_refused(tmp_path: Path) -> None:
    folders = {name: save_tiny_model(tmp_path / name) for name in ("lacking", "contradicting")}
    for name, folder in folders.items():
        file = Path(folder) / "model.safetensors"
        weights = load_file(file)
        if name == "lacking":
            del weights["model.layers.1.mlp.up_proj.weight"]
        else:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1
        save_file(weights, file, {"format": "pt"})
    for messages in run_learners(refusals, 2, tmp_path / "group", folders):
        assert "lack weights" in messages["lacking"]
        assert "model.layers.1.mlp.up_proj.weight" in messages["lacking"]
        assert "tie_word_embeddings" in messages["contradicting"]


def test_a_model_without_safetensors_has_no_parts(tmp_path: Path) -> None:
    folder = Path(save_tiny_model(tmp_path / "model"))
    assert files_in_parts(str(folder)) == [str(folder / "model.safetensors")]
    (folder / "model.safetensors").unlink()
    assert files_in_parts(str(folder)) is None


def measured(source: str, warm: str, state_file: str | None) -> dict[str, Any]:
    """Builds a policy, then loads a state into it; the first, small one loads the code."""
    for folder in (warm, source):
        # Without weights the module's code is loaded, and its buffers are there.
        policy = Policy(load_causal_lm(folder, torch.float32, empty=True))
        with Peak() as building:
            place(policy, folder, CPU)
    with Peak() as all_at_once:
        # transformers lays tensors onto the pages of the file, which are copied where they are written to.
        copies = [parameter.clone() for parameter in load_causal_lm(source, torch.float32).parameters()]
    del copies
    weights = sum(parameter.numel() * 4 for parameter in policy.parameters())
    block = max(sum(p.numel() * 4 for p in block.parameters()) for block in transformer_blocks(policy))
    result = {"building": building.bytes, "weights": weights, "block": block, "held": held(policy)}
    result["whole"] = all_at_once.bytes
    if state_file is not None:
        # As Ray's object store gives states: arrays on pages that all processes share.
        state = {
            name: np.memmap(file, np.float32, "r", shape=tuple(shape))
            for name, (file, shape) in torch.load(state_file).items()
        }
        with Peak() as loading:
            load_weights(policy, state)
        result["loading"] = loading.bytes
        result["first"] = float(gather_weights(policy)["model.model.norm.weight"][0])
    return result


def held(model: torch.nn.Module) -> int:
    return sum(parameter.to_local().numel() * 4 for parameter in model.parameters())  # type: ignore[attr-defined, operator]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("num_learners", [2, 4])
def test_no_process_takes_more_than_its_slices_and_a_block(
    large_model: str, model_folder: str, tmp_path: Path, num_learners: int
) -> None:
    state = {}
    for name, weight in load_file(Path(large_model) / "model.safetensors").items():
        file = tmp_path / f"{name}.bin"
        (weight + 1).numpy().tofile(file)
        state[f"model.{name}"] = (str(file), tuple(weight.shape))
    torch.save(state, tmp_path / "state")
    arguments = (large_model, model_folder, str(tmp_path / "state"))
    for rank, found in enumerate(run_learners(measured, num_learners, tmp_path / "group", *arguments)):
        allowed = found["weights"] / num_learners + found["block"]
        print(
            f"{num_learners} learners, learner {rank}: weights {found['weights'] / MIB:.1f} MiB, block {found['block'] / MIB:.1f}, "
            f"slices {found['held'] / MIB:.1f}, peak while building {found['building'] / MIB:.1f}, while a state is loaded "
            f"{found['loading'] / MIB:.1f} more"
        )
        assert 90 * MIB < found["weights"] < 110 * MIB
        assert found["building"] < allowed + OTHER_MEMORY
        assert found["building"] < 0.75 * found["weights"]
        # What measures so little sees a whole model.
        assert found["whole"] > 0.95 * found["weights"]
        assert found["loading"] < found["block"] + OTHER_MEMORY
        assert found["first"] == 2.0
