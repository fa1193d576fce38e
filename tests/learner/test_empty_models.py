"""Models without weights have the names, ties, buffers and adapters of whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, make_family
from torch import nn

from tppo_rl.learner.empty_models import empty_again, is_empty, stand_ins, weights_are_left_out, without_weights
from tppo_rl.learner.lora import add_adapters
from tppo_rl.learner.models import Critic, Policy, compute_logits_in_float32, load_causal_lm
from tppo_rl.learner.output_layer import head_suffices


def both(folder: Path, **options: Any) -> tuple[Any, Any]:
    whole, empty = (load_causal_lm(str(folder), torch.float32, empty=left_out, **options) for left_out in (False, True))
    return whole, empty


@pytest.mark.parametrize("family", FAMILIES)
def test_all_but_the_weights_is_that_of_whole_models(family: str, tmp_path: Path) -> None:
    whole, empty = both(make_family(family, tmp_path))
    expected, found = (dict(model.named_parameters(remove_duplicate=False)) for model in (whole, empty))
    assert all(parameter.is_meta for parameter in found.values())
    assert is_empty(empty)
    assert not is_empty(whole)
    described = [{n: (p.shape, p.dtype, p.requires_grad) for n, p in names.items()} for names in (expected, found)]
    assert described[0] == described[1]
    ties = [{n: [m for m in names if names[m] is names[n]] for n in names} for names in (expected, found)]
    assert ties[0] == ties[1]
    for (name, buffer), (other, ours) in zip(whole.named_buffers(), empty.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(buffer, ours)
    # Gemma 2 caps its logits; those of a small random model are so small that on its weights nothing is seen of it.
    assert head_suffices(empty) == (family != "gemma2")


def test_heads_of_wrapped_models_are_judged_alike_and_left_as_they_were(tmp_path: Path) -> None:
    whole, empty = both(make_family("qwen2", tmp_path))
    compute_logits_in_float32(empty, torch.bfloat16)
    before = empty.get_output_embeddings().forward
    assert Policy(whole)._head_suffices
    assert Policy(empty)._head_suffices
    assert empty.get_output_embeddings().forward is before
    assert "forward" not in empty.base_model.__dict__
    assert not Critic(empty).value_head.weight.is_meta


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_adapters_have_their_weights(family: str, tmp_path: Path) -> None:
    whole, empty = both(make_family(family, tmp_path))
    for model in (whole, empty):
        add_adapters(model, {"rank": 2})
    expected, found = dict(whole.named_parameters()), dict(empty.named_parameters())
    assert expected.keys() == found.keys()
    for name, parameter in found.items():
        assert parameter.requires_grad == expected[name].requires_grad == (".lora_" in name)
        assert parameter.is_meta == (".lora_" not in name)
        assert parameter.is_meta or torch.equal(parameter, expected[name])


def test_stand_ins_take_no_memory_and_go_again() -> None:
    model = nn.Sequential(nn.Linear(1000, 1000, device="meta"), nn.Linear(2, 2))
    tied = model[0].weight
    model.register_parameter("same", tied)
    with stand_ins(model):
        assert not is_empty(model)
        assert model[0].weight is model.same
        assert model[0].weight.untyped_storage().nbytes() == 4
    assert model[0].weight.is_meta
    assert model[0].weight is model.same
    assert not model[1].weight.is_meta
    empty_again(model)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_weights_are_left_out_where_that_is_asked_for() -> None:
    assert not weights_are_left_out()
    with without_weights():
        assert weights_are_left_out()
    assert not weights_are_left_out()
