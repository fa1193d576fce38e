"""Sharded models in half precision: as near to float32 as whole ones are, with blocks gathered in half of the bytes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_helpers import VOCABULARY, load_models, round_norms_of_blocks, run_two_learners, save_tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

from tppo_rl.learner.models import Critic, Policy, transformer_blocks
from tppo_rl.learner.sharding import gather_weights, gathered, load_weights, shard

pytestmark = pytest.mark.integration

FAMILIES = ("qwen2", "gpt2")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
NUM_BATCHES = 8
LOSS_SCALE = {"bfloat16": 1.0, "float16": 128.0}


def save_family(family: str, folder: Path) -> str:
    if family == "qwen2":
        return save_tiny_model(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=None, eos_token_id=1
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    return str(folder)


def models(folder: str, dtype: torch.dtype) -> tuple[Policy, Critic]:
    """Models whose weights are no numbers of half precision, those of norms included, which start at 1."""
    pair = load_models(folder, dtype)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for model in pair:
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator) * (parameter.abs() + 0.1))
    return pair


def gradients(pair: tuple[Policy, Critic], batch: int, scale: float, rank: int) -> dict[str, torch.Tensor]:
    """Gradients of losses without a bend, at which rounding would decide: log-likelihood and squared values.

    Args:
        pair: Policy and critic.
        batch: Which tokens to take.
        scale: Factor of the losses; the gradients do not have it.
        rank: Which half of the rows to take.
    """
    rows = torch.randint(2, VOCABULARY, (6, 20), generator=torch.Generator().manual_seed(batch))
    rows = rows[3 * rank : 3 * rank + 3]
    policy, critic = pair
    for model in pair:
        model.zero_grad()
    row = torch.arange(len(rows)).repeat_interleave(19)
    column = torch.arange(19).repeat(len(rows))
    log_probs = policy(rows, row, column, rows[row, column + 1], temperature=1.0).log_probs
    (scale / 6 * -log_probs.sum()).backward()
    (scale / 6 * (critic(rows) - 1.0).square().sum()).backward()
    return {
        f"{kind}.{name}": gathered(parameter.grad).clone() / scale
        for kind, model in zip(("policy", "critic"), pair, strict=True)
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def summed(parts: Iterable[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    first, *others = parts
    return {name: sum((other[name] for other in others), gradient) for name, gradient in first.items()}


def learner(rank: int, folders: dict[str, str], meeting_point: str, results: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    outcomes: dict[str, Any] = {}
    for family, folder in folders.items():
        for name, dtype in DTYPES.items():
            pair = models(folder, dtype)
            for model in pair:
                shard(model)
            gathered_in: dict[str, torch.dtype] = {}
            for module in (transformer_blocks(pair[0])[0], pair[0].model.get_input_embeddings()):
                module.register_forward_pre_hook(
                    lambda module, _, into=gathered_in: into.update(
                        {type(module).__name__: next(module.parameters()).dtype}
                    )
                )
            outcomes[f"{family}, {name}"] = [
                gradients(pair, batch, LOSS_SCALE[name], rank) for batch in range(NUM_BATCHES)
            ]
            outcomes[f"{family}, {name}, dtypes"] = gathered_in
            weights = gather_weights(pair[0])
            load_weights(pair[0], weights)
            assert {parameter.dtype for parameter in pair[0].parameters()} == {torch.float32}
    torch.save(outcomes, f"{results}.{rank}")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_family(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(scope="module")
def sharded(folders: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_two_learners(learner, tmp_path_factory.mktemp("precision"), folders, timeout_s=120)[0]


def error(found: list[dict[str, torch.Tensor]], truth: list[dict[str, torch.Tensor]], model: str) -> float:
    """Distance from the truth of all gradients of one model, as a fraction of their norm."""
    names = [name for name in truth[0] if name.startswith(model)]
    assert names
    both = [(ours[name], true[name]) for ours, true in zip(found, truth, strict=True) for name in names]
    distance = sum(float((ours - true).square().sum()) for ours, true in both)
    return float((distance / sum(float(true.square().sum()) for _, true in both)) ** 0.5)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_as_near_to_float32_as_those_of_whole_models(
    sharded: dict[str, Any], folders: dict[str, str], family: str, dtype: str
) -> None:
    scale = LOSS_SCALE[dtype]
    truth, whole, rounded = (models(folders[family], d) for d in (torch.float32, DTYPES[dtype], DTYPES[dtype]))
    for model in rounded:
        round_norms_of_blocks(model, DTYPES[dtype])
    true, of_whole, of_rounded = (
        [summed(gradients(pair, batch, factor, rank) for rank in (0, 1)) for batch in range(NUM_BATCHES)]
        for pair, factor in ((truth, 1.0), (whole, scale), (rounded, scale))
    )
    ours = sharded[f"{family}, {dtype}"]
    for model in ("policy", "critic"):
        errors = error(ours, true, model), error(of_whole, true, model)
        print(f"{family}, {dtype}, {model}: sharded {errors[0]:.2e}, whole {errors[1]:.2e} from float32's")
        assert errors[0] < 1.25 * errors[1] + 1e-6
        # The rounding of norms is all of the difference.
        assert error(ours, of_rounded, model) < 1e-5


@pytest.mark.timeout(180)
def test_blocks_are_gathered_in_half_precision_and_the_embedding_is_not(sharded: dict[str, Any]) -> None:
    block, embedding = "Qwen2DecoderLayer", "Embedding"
    for name, dtype in DTYPES.items():
        seen = {kind.removeprefix("FSDP"): of for kind, of in sharded[f"qwen2, {name}, dtypes"].items()}
        assert seen == {block: dtype, embedding: torch.float32}
