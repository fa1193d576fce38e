"""Sharded models that are built without weights and filled slice by slice: no process holds a whole model meanwhile.

    load_causal_lm(source, empty=True)      names, shapes and buffers
      -> place(model, source, device)       sharded, room for this learner's slices, slices read from the files

| weights | what a learner reads | memory beside its slices |
|---|---|---|
| that a file has as the model has them | its rows of each | one slice |
| that transformers makes of others in the files (experts of a layer in one tensor) | all that they are made of | one such tensor |

Files are safetensors, which can be read in parts, and which run no code.
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from tppo_rl.learner.empty_models import empty_again
from tppo_rl.learner.lora import is_of_adapter, name_without_adapters
from tppo_rl.learner.models import Critic, Policy, load_causal_lm
from tppo_rl.learner.sharding import rows_of, shard
from tppo_rl.learner.transformers_internals import load_into, source_names

_INDEX, _FILE = "model.safetensors.index.json", "model.safetensors"


def files_in_parts(source: str) -> list[str] | None:
    """Returns the safetensors files of a model; None if it has none.

    Args:
        source: Local folder or hub id.
    """
    from transformers.utils.hub import cached_file, get_checkpoint_shard_files

    options: dict[str, Any] = {
        "_raise_exceptions_for_missing_entries": False,
        "_raise_exceptions_for_connection_errors": False,
    }
    index = cached_file(source, _INDEX, **options)
    if index is not None:
        return list(get_checkpoint_shard_files(source, index)[0])
    file = cached_file(source, _FILE, **options)
    return None if file is None else [file]


def place(model: Policy | Critic, source: str, device: torch.device) -> None:
    """Shards an empty model in place and reads this learner's slices of its weights; all learners must call it.

    What has weights already (adapters, a value head) keeps them.

    Args:
        model: Empty, of `load_causal_lm(source, empty=True)`.
        source: Local folder or hub id, with safetensors files.
        device: Of the learner.

    Raises:
        ValueError: the files lack weights of the model, or have tied ones with different values.
    """
    shard(model, device)
    model._apply(lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device))
    missing = _fill(_by_names_in_files(model), source)
    if missing:
        raise ValueError(
            f"the files of {source!r} lack weights of {_inner(model).__class__.__name__}: {', '.join(missing[:3])}; "
            "give a model whose files hold all of its weights"
        )


def _inner(model: Policy | Critic) -> Any:
    return model.model if isinstance(model, Policy) else model.backbone


def _by_names_in_files(model: Policy | Critic) -> dict[str, torch.Tensor]:
    """Returns slices to fill by the names that they have in the causal language model without adapters."""
    inner = _inner(model)
    prefix = "" if isinstance(model, Policy) else f"{inner.base_model_prefix}."
    saved = inner.state_dict().keys()
    # Tied weights are one tensor under two names, of which the files may have either.
    parameters = dict(inner.named_parameters(remove_duplicate=False))
    buffers = {name: tensor for name, tensor in inner.named_buffers() if name in saved}
    return {
        prefix + name_without_adapters(name): tensor
        for name, tensor in (parameters | buffers).items()
        if not is_of_adapter(name)
    }


@torch.no_grad()
def _fill(own: dict[str, torch.Tensor], source: str) -> list[str]:
    """Reads the files; returns the names of what they do not hold."""
    from safetensors import safe_open

    files = files_in_parts(source)
    assert files is not None, "checked before the model was left empty"
    plain = load_causal_lm(source, torch.float32, empty=True)
    filled: set[int] = set()
    with ExitStack() as stack:
        slices: dict[str, Any] = {}
        for file in files:
            opened = stack.enter_context(safe_open(file, framework="pt"))
            slices |= {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 (it is no dict)
        made_of: dict[str, dict[str, Any]] = defaultdict(dict)
        for name, (target, is_made) in source_names(plain, slices).items():
            if target not in own:
                continue
            if is_made:
                made_of[target][name] = slices[name]
            elif id(own[target]) in filled:
                _check_same_rows(own[target], slices[name], f"{source!r}: {name}")
            else:
                _copy_rows(own[target], slices[name])
                filled.add(id(own[target]))
        for parts in made_of.values():
            load_into(plain, parts)
            for name, tensor in plain.state_dict().items():
                if not tensor.is_meta and name in own:
                    _copy_rows(own[name], tensor)
                    filled.add(id(own[name]))
            empty_again(plain)
    return [name for name, tensor in own.items() if id(tensor) not in filled]


def _copy_rows(own: torch.Tensor, whole: Any) -> None:
    """Copies this learner's rows of a tensor, or of what safetensors can slice."""
    mine, rows = _rows(own, whole)
    mine.copy_(rows)


def _check_same_rows(own: torch.Tensor, whole: Any, name: str) -> None:
    mine, rows = _rows(own, whole)
    if not torch.equal(mine, rows.to(mine)):
        raise ValueError(
            f"{name} is tied to another weight of the model, which the files have with other values: set "
            "tie_word_embeddings to false in config.json"
        )


def _rows(own: torch.Tensor, whole: Any) -> tuple[torch.Tensor, torch.Tensor]:
    if not isinstance(own, DTensor):
        return own, whole[...]
    start, stop = rows_of(own)
    return own.to_local(), whole[start:stop]
