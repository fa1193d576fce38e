"""Checkpoints as a run writes them, without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from tppo_rl.core.checkpoint_files import MODULE, write_checkpoint
from tppo_rl.core.sliced_arrays import Sliced, slice_file, write_slices
from tppo_rl.learner.module import LanguageModelModule


def write_moved_model(
    checkpoint: Path, config: Any, model_config: dict[str, Any], *, num_slices: int | None = None
) -> LanguageModelModule:
    """Writes a checkpoint of models whose trained weights have moved, and returns the models.

    Args:
        checkpoint: Its folder.
        config: An algorithm's config.
        model_config: Of the models.
        num_slices: Number of sharded learners whose files it has; None: it has whole weights.
    """
    module = LanguageModelModule(observation_space=None, action_space=None, model_config=model_config)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    state: dict[str, Any] = module.get_state()
    written: dict[str, Any] = {}
    if num_slices is not None:
        checkpoint.mkdir(parents=True)
        for name, weights in state.items():
            state[name] = _in_slices(checkpoint, name, weights, num_slices, written)
    for name in reversed(MODULE):
        state = {name: state}
    write_checkpoint(checkpoint, state, {"options": config.options.flat(), "model_config": model_config}, written)
    return module


def _in_slices(
    checkpoint: Path, name: str, weights: dict[str, np.ndarray], parts: int, written: dict[str, Any]
) -> dict[str, Sliced]:
    for part in range(parts):
        starts = {key: part * len(weight) // parts for key, weight in weights.items()}
        stops = {key: (part + 1) * len(weight) // parts for key, weight in weights.items()}
        rows = {key: torch.tensor(weight[starts[key] : stops[key]]) for key, weight in weights.items()}
        file = slice_file(name, part, parts)
        written[file] = write_slices(checkpoint / file, {key: own for key, own in rows.items() if len(own)}, starts)
    return {key: Sliced(name, parts, key, weight.shape) for key, weight in weights.items()}
