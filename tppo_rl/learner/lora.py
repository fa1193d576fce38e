"""Low-rank adapters (LoRA, arXiv 2106.09685) beside the linear layers of a transformers model.

    y = W x + (alpha / rank) B A x        A random, B zero at first; W is frozen

The adapters are put into the model in place, so that it keeps its class, its backbone and its output layer. An engine
gets W + (alpha / rank) B A under the names that the model has without adapters. A checkpoint gets the trained weights
alone, because W is loaded from the model's source again. There is no dropout: the engine has none either.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import nn

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.config.sections.models import SHARED
from tppo_rl.core.errors import OptionError
from tppo_rl.learner.empty_models import stand_ins
from tppo_rl.learner.models import load_causal_lm

ALL_LINEAR = "all-linear"
"""Value of `target_modules` that takes every linear layer but the output layer."""

_T = TypeVar("_T")
_TRANSPOSED = "Conv1D"
"""Class of GPT-2's linear layers, whose weight is transposed."""
_ADAPTER = "default"
_SEED = 0


def add_adapters(model: Any, lora: Mapping[str, Any], key: str = "lora") -> None:
    """Freezes a transformers causal language model and puts trainable adapters beside its linear layers.

    The log-probs do not change, bit for bit, because B is zero. A is the same in every process. Both are float32 beside
    weights of half precision.

    Args:
        model: The model; it is changed in place.
        lora: `rank`, `alpha` (2 * rank if missing or None) and `target_modules` (names, or "all-linear", the default).
        key: Option that says so.

    Raises:
        ValueError: a name in `target_modules` belongs to no linear layer, or to the output layer.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = lora.get("target_modules") or ALL_LINEAR
    if targets == ALL_LINEAR:
        # peft's own "all-linear" takes experts and routers of mixtures as well, whose adapters no engine could be given merged.
        targets = _linear_layers(model)
    else:
        _check_targets(model, list(targets), key)
    alpha = lora.get("alpha")
    config = LoraConfig(
        r=lora["rank"],
        lora_alpha=2 * lora["rank"] if alpha is None else alpha,
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(type(module).__name__ == _TRANSPOSED for module in model.modules()),
    )
    with stand_ins(model), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        inject_adapter_in_model(config, model, adapter_name=_ADAPTER)
    for parameter in model.parameters():
        if parameter.requires_grad:
            # Adapters are small, and a step of reinforcement learning is often below the spacing of bfloat16 numbers.
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))


def check_adapters(options: Options) -> None:
    """Checks that the models have the layers that `lora` and `critic_lora` name; all of them are built without weights.

    Raises:
        OptionError: a name in `target_modules` belongs to no linear layer, or to the output layer.
    """
    models = options.models
    policy, critic = (models.policy_model, None), (models.critic_model, models.critic_layers)
    sources = {"lora": {policy} if models.critic == SHARED else {policy, critic}, "critic_lora": {critic}}
    for key, adapters in {"lora": models.lora, "critic_lora": models.critic_lora}.items():
        if adapters is None or adapters.target_modules == ALL_LINEAR:
            continue
        for source, layers in sources[key]:
            if source is None:
                continue
            try:
                model = load_causal_lm(resolve_model(source), torch.float32, num_layers=layers, empty=True)
                _check_targets(model, list(adapters.target_modules), key)
            except ValueError as error:
                raise OptionError(str(error)) from None


def has_adapters(model: nn.Module) -> bool:
    """Whether `add_adapters` has been called on the model."""
    return any(hasattr(module, "get_delta_weight") for module in model.modules())


def is_of_adapter(name: str) -> bool:
    """Whether a weight of this name belongs to an adapter."""
    return ".lora_" in name


def name_without_adapters(name: str) -> str:
    """Returns the name that a weight beside adapters has in the model without them."""
    return name.replace(".base_layer.", ".")


def merged_weights(model: nn.Module, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the weights with which the model without adapters computes the same, under its names.

    Without adapters these are the given weights.

    Args:
        model: Model with the adapters. Its own weights are not read, because they may be slices.
        weights: Whole weights of the model by name.
    """
    if not has_adapters(model):
        return dict(weights)
    merged = {name_without_adapters(name): weight for name, weight in weights.items() if not is_of_adapter(name)}
    for name, layer in model.named_modules():
        if hasattr(layer, "get_delta_weight"):
            up, down = (weights[f"{name}.lora_{part}.{_ADAPTER}.weight"] for part in "BA")
            product = layer.scaling[_ADAPTER] * (up @ down)
            merged[f"{name}.weight"] = merged[f"{name}.weight"] + (product.T if layer.fan_in_fan_out else product)
    return merged


def save_adapter(model: Any, base: str, folder: Path) -> None:
    """Writes the adapters and their config in the form of peft, for `PeftModel.from_pretrained` and vLLM.

    Args:
        model: Model with adapters.
        base: Folder or hub id of the model without them.
        folder: Is made.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config[_ADAPTER])
    config.base_model_name_or_path, config.task_type = base, "CAUSAL_LM"
    config.save_pretrained(folder)
    weights = {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": parameter.detach().contiguous()
        for name, parameter in model.named_parameters()
        if is_of_adapter(name)
    }
    save_file(weights, folder / "adapter_model.safetensors")


def trained_weights(model: nn.Module, weights: Mapping[str, _T]) -> dict[str, _T]:
    """Returns the weights for a checkpoint: the trained ones if the model has adapters, else all."""
    if not has_adapters(model):
        return dict(weights)
    return {name: weights[name] for name, parameter in model.named_parameters() if parameter.requires_grad}


def check_trained(model: nn.Module, weights: Mapping[str, Any]) -> None:
    """Checks that weights have the form that `trained_weights` gives for a model with adapters.

    Raises:
        RuntimeError: names or shapes are not those of the parameters that train.
    """
    own = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    if own.keys() != weights.keys():
        raise RuntimeError(
            f"these weights are not those of the adapters: missing {sorted(own.keys() - weights.keys())[:3]}, unexpected "
            f"{sorted(weights.keys() - own.keys())[:3]}; take the state of a module with the same lora"
        )
    for name, shape in own.items():
        if tuple(shape) != tuple(weights[name].shape):
            raise RuntimeError(
                f"{name} has shape {tuple(shape)}, the state's has {tuple(weights[name].shape)}: lora.rank differs"
            )


def _check_targets(model: Any, targets: list[str], key: str) -> None:
    output = _output_layer(model)
    linear = _linear_layers(model)
    for target in targets:
        matches = [name for name in (*linear, output) if name == target or name.endswith(f".{target}")]
        if not matches:
            names = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"{key}.target_modules: {type(model).__name__} has no linear layer {target!r}; it has {', '.join(names)}"
            )
        if output in matches:
            # Its weight may also be the input embedding, and an engine could not get one without the other.
            raise ValueError(f"{key}.target_modules: {target!r} is the output layer, which stays as it is; remove it")


def _output_layer(model: Any) -> str:
    return next(name for name, module in model.named_modules() if module is model.get_output_embeddings())


def _linear_layers(model: Any) -> list[str]:
    """Names of all linear layers but the output layer."""
    output = _output_layer(model)
    return [name for name, module in model.named_modules() if _is_linear(module) and name != output]


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == _TRANSPOSED
