"""Checkpoints as a run writes them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tppo_rl.core.checkpoint_files import MODULE, write_checkpoint
from tppo_rl.learner.module import LanguageModelModule


def write_moved_model(checkpoint: Path, config: Any, model_config: dict[str, Any]) -> LanguageModelModule:
    """Writes a checkpoint of models whose trained weights have moved, and returns the models.

    Args:
        checkpoint: Its folder.
        config: An algorithm's config.
        model_config: Of the models.
    """
    module = LanguageModelModule(observation_space=None, action_space=None, model_config=model_config)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    state: dict[str, Any] = module.get_state()
    for name in reversed(MODULE):
        state = {name: state}
    write_checkpoint(checkpoint, state, {"options": config.options.flat(), "model_config": model_config})
    return module
