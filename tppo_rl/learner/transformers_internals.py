"""transformers' insides: how it turns weights of files into those of its modules and back, and which stay float32."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

import torch

from tppo_rl.core.insides import TRANSFORMERS, Contract

CONTRACT: Contract = {
    "transformers.core_model_loading": (
        "WeightConverter",
        "WeightRenaming",
        "convert_and_load_state_dict_in_model",
        "rename_source_key",
        "revert_weight_conversion",
    ),
    "transformers.conversion_mapping": ("get_model_conversion_mapping",),
    "transformers.modeling_utils:LoadStateDictConfig": ("dtype", "weight_mapping"),
}


def kept_in_float32(model: Any) -> list[str]:
    """Returns parts of names of the weights that a transformers model keeps in single precision beside half precision."""
    kept = (getattr(model, f"_keep_in_fp32_modules{strict}", None) or () for strict in ("", "_strict"))
    return sorted(set(chain(*kept)))


def conversions_to_files(model: Any) -> bool:
    """Whether files of the model have other names or shapes than its modules."""
    with TRANSFORMERS.insides("transformers.conversion_mapping.get_model_conversion_mapping"):
        from transformers.conversion_mapping import get_model_conversion_mapping
    return bool(getattr(model, "_weight_conversions", None) or get_model_conversion_mapping(model, add_legacy=False))


def to_file_layout(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Returns weights by the names, and in the shapes, with which `save_pretrained` would write them."""
    with TRANSFORMERS.insides("transformers.core_model_loading.revert_weight_conversion"):
        from transformers.core_model_loading import revert_weight_conversion
    return dict(revert_weight_conversion(model, dict(weights)))


def source_names(model: Any, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
    """Returns, by names of tensors in files, the model's weights that they become, and whether they are converted for it.

    What the model does not have is under a name that it does not know. Several tensors may become one weight.

    Args:
        model: transformers language model, with or without weights.
        names: Of the tensors in the model's files.
    """
    with TRANSFORMERS.insides("transformers.core_model_loading.rename_source_key"):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    known, prefix = model.state_dict(), model.base_model_prefix
    targets = {}
    for name in names:
        target, converter = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, converter = rename_source_key(name, [], [], prefix, known)
        targets[name] = (target, converter is not None)
    return targets


def load_into(model: Any, tensors: Mapping[str, Any]) -> None:
    """Loads some of a file's tensors into a model without weights, converted as `from_pretrained` does, in float32.

    Args:
        model: transformers language model.
        tensors: Tensors, or slices of safetensors, by their names in the file.
    """
    from transformers.utils import logging

    with TRANSFORMERS.insides("transformers.core_model_loading.convert_and_load_state_dict_in_model"):
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig
    config = LoadStateDictConfig(dtype=torch.float32, weight_mapping=get_model_conversion_mapping(model))
    shows_bars = logging.is_progress_bar_enabled()
    # There would be one for each weight.
    logging.disable_progress_bar()
    try:
        convert_and_load_state_dict_in_model(model, dict(tensors), config)
    finally:
        if shows_bars:
            logging.enable_progress_bar()
