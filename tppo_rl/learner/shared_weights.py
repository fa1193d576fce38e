"""Models that have frozen weights in common, with one copy of them in memory.

A critic with adapters on the policy's backbone, and policy, critic and reference around one model that adapters leave as it is.
"""

from __future__ import annotations

from torch import nn


def share_weights(model: nn.Module, owner: nn.Module) -> None:
    """Puts another model's weights in the place of a model's own, frozen: they change when the owner's do.

    The model's adapters stay its own; those of the owner are not looked at. Weights that are tied stay tied.

    Args:
        model: Changed in place; may be without weights (see `empty_models`), and have fewer layers than the owner.
        owner: Of the same architecture.

    Raises:
        ValueError: the owner lacks a weight of the model, or has it in another shape.
    """
    weights = {_own_name(name): weight for name, weight in owner.named_parameters(remove_duplicate=False)}
    shared: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, weight in module._parameters.items():
            whole_name = _own_name(f"{path}.{name}" if path else name)
            if weight is None or _is_adapter(whole_name):
                continue
            own = weights.get(whole_name)
            if own is None or own.shape != weight.shape:
                raise ValueError(f"{whole_name} of the policy is missing or has another shape: the models differ")
            if id(own) not in shared:
                # A parameter of its own: the owner's collects gradients, and this one does not.
                shared[id(own)] = nn.Parameter(own.data, requires_grad=False)
            module._parameters[name] = shared[id(own)]


def _own_name(name: str) -> str:
    """Name of a weight in the model without adapters."""
    return name.replace(".base_layer.", ".")


def _is_adapter(name: str) -> bool:
    return ".lora_" in name
