"""transformers' insides: how it turns its modules' weights back into those of a model's files, and which stay float32."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch

from tppo_rl.core.insides import TRANSFORMERS, Contract

CONTRACT: Contract = {
    "transformers.core_model_loading": ("revert_weight_conversion",),
    "transformers.conversion_mapping": ("get_model_conversion_mapping",),
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
