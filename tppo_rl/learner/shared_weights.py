"""Models that have frozen weights in common, with one copy of them in memory.

A critic with adapters on the policy's backbone, and policy, critic and reference around one model that adapters leave as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from tppo_rl.learner.lora import is_of_adapter, name_without_adapters


def share_weights(model: nn.Module, owner: nn.Module) -> None:
    """Puts another model's weights and buffers in the place of a model's own, frozen: they change when the owner's do.

    Neither model's adapters are looked at. Weights that are tied stay tied.

    Args:
        model: Changed in place; may be without weights (see `empty_models`), and have fewer layers than the owner.
        owner: Of the same architecture.

    Raises:
        ValueError: the owner lacks a weight of the model, or has it in another shape.
    """
    of_owner = {name_without_adapters(path): tensor for path, tensor, _, _ in _tensors(owner)}
    shared: dict[int, nn.Parameter] = {}
    for path, tensor, places, name in _tensors(model):
        whole_name = name_without_adapters(path)
        own = of_owner.get(whole_name)
        if own is None or own.shape != tensor.shape:
            raise ValueError(f"{whole_name} of the policy is missing or has another shape: the models differ")
        if not isinstance(own, nn.Parameter):
            places[name] = own
            continue
        if id(own) not in shared:
            # A parameter of its own: the owner's collects gradients, and this one does not.
            shared[id(own)] = nn.Parameter(own.data, requires_grad=False)
        places[name] = shared[id(own)]


def once_each(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns what gives tensors that are the same memory one result: models that are moved with it still share, and take no more meanwhile."""
    results: dict[tuple[Any, ...], torch.Tensor] = {}

    def of(tensor: torch.Tensor) -> torch.Tensor:
        key = (tensor.data_ptr(), tensor.dtype, tensor.device, tensor.shape, tensor.stride())
        if tensor.is_meta or not tensor.numel():
            return function(tensor)
        if key not in results:
            results[key] = function(tensor)
        return results[key]

    return of


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor, dict[str, Any], str]]:
    """Yields each parameter and buffer that is no adapter's: its path, itself, and where it stands."""
    for path, module in model.named_modules():
        for places in (module._parameters, module._buffers):
            for name, tensor in list(places.items()):
                whole = f"{path}.{name}" if path else name
                if tensor is not None and not is_of_adapter(whole):
                    yield whole, tensor, places, name
