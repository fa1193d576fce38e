"""A policy out of a checkpoint, as a transformers model: with its adapters merged, or as an adapter.

Neither a learner nor Ray's actors are started; the critic is loaded only where it is asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tppo_rl.core.checkpoint_files import checkpoint_facts, module_state
from tppo_rl.core.errors import OptionError
from tppo_rl.core.value_head_file import VALUE_HEAD_FILE, form_metadata
from tppo_rl.learner.lora import has_adapters, merged_weights, save_adapter
from tppo_rl.learner.models import load_causal_lm, parse_dtype
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.learner.sharding import gather_weights, load_weights


def load_module(checkpoint: Path, *, critic: bool = False) -> LanguageModelModule:
    """Loads the models of a checkpoint on the CPU.

    Args:
        checkpoint: Folder of one checkpoint.
        critic: Whether to load the critic as well, where there is one.

    Raises:
        OptionError: the checkpoint is damaged or none of this package, or the model that it began with is gone.
    """
    config = dict(checkpoint_facts(checkpoint)["model_config"]) | {
        "reference_model": None,
        "gradient_checkpointing": False,
        # The kernels of training may need a GPU.
        "attention": "sdpa",
    }
    state = module_state(checkpoint)
    try:
        module = LanguageModelModule(
            observation_space=None, action_space=None, inference_only=not critic, model_config=config
        )
    except ValueError as error:
        raise OptionError(f"checkpoint={str(checkpoint)!r}: its base model cannot be loaded: {error}") from None
    module.set_state(state)
    return module


def save_policy(module: LanguageModelModule, folder: Path, *, dtype: torch.dtype | None, adapter: bool = False) -> None:
    """Writes the policy's weights and config as transformers does.

    Args:
        module: From `load_module`.
        folder: Is made.
        dtype: Number format of the weights on file; None: that in which they were trained.
        adapter: Whether to write the adapter alone, in the form of peft.

    Raises:
        OptionError: there is no adapter.
    """
    source = str((module.model_config or {})["policy_model"])
    model = module.policy.model
    if adapter:
        if not has_adapters(model):
            raise OptionError("--adapter: the policy was trained without lora; leave it out")
        save_adapter(model, source, folder)
        return
    weights = merged_weights(model, gather_weights(model))
    config = module.model_config or {}
    plain = load_causal_lm(source, torch.float32, weights_dtype=parse_dtype(config.get("weights_dtype", "float32")))
    load_weights(plain, _in_names_of(plain, weights), strict=True)
    (plain if dtype is None else plain.to(dtype)).save_pretrained(folder)


def save_critic(module: LanguageModelModule, folder: Path) -> None:
    """Writes the critic's backbone as transformers does, with its adapters merged, and its value head beside it (`core.value_head_file`).

    Raises:
        OptionError: there is no critic.
    """
    from safetensors.torch import save_file

    if module.critic is None:
        raise OptionError("--critic: the run had no critic; leave it out")
    critic = module.critic
    _merged_backbone(module).save_pretrained(folder)
    head = {name: tensor.detach().contiguous() for name, tensor in critic.value_head.state_dict().items()}
    save_file(head, folder / VALUE_HEAD_FILE, form_metadata((module.model_config or {}).get("value_form")))


def _merged_backbone(module: LanguageModelModule) -> Any:
    """The critic's backbone, without adapters."""
    assert module.critic is not None
    backbone = module.critic.backbone
    if not has_adapters(backbone):
        return backbone
    config = module.model_config or {}
    dtype = parse_dtype(config.get("weights_dtype", "float32"))
    layers = config.get("critic_layers")
    plain = load_causal_lm(module.source("critic"), torch.float32, weights_dtype=dtype, num_layers=layers).base_model
    load_weights(plain, merged_weights(backbone, gather_weights(backbone)), strict=True)
    return plain


def _in_names_of(model: torch.nn.Module, weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds the second names of tied weights."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return weights | {name: weights[own] for name, own in tied.items() if own in weights}
