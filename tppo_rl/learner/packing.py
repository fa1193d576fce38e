"""How the sequences of a micro-batch stand in what a model reads: a row each, padded, or all in one row without padding.

    padded    a a a a a .        packed    a a a a a b b b c c c c
              b b b . . .        positions 0 1 2 3 4 0 1 2 0 1 2 3
              c c c c . .

In the packed row, positions that start anew say where a sequence begins: transformers builds a mask (sdpa, flex_attention)
or takes kernels for variable lengths (flash_attention_2) from them, so that no token sees another sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.models import Critic, Policy

_CHECKED_LENGTH = 8
_LARGEST_DIFFERENCE = {torch.float32: 1e-4, torch.float64: 1e-4}
_LARGEST_DIFFERENCE_OF_HALF = 2e-2


@dataclass(frozen=True, eq=False)
class ModelInput:
    """Sequences as a model reads them, on its device."""

    input_ids: torch.Tensor
    """int64 [b, n], padded on the right with 0; packed [1, n]."""
    starts: torch.Tensor
    """int64 [b] on the CPU: position of each sequence that stands in column 0, below 0 where it begins in a later one."""
    position_ids: torch.Tensor | None = None
    """int64, shaped as `input_ids`, if packed or after contexts. Other rows need none: each begins at 0."""
    attention_mask: torch.Tensor | None = None
    """bool [b, 1, n, c + n] after contexts of at most c positions: what each column sees of them and of its row."""
    past_key_values: Any = None
    """transformers' cache with keys and values of the contexts."""

    def of_model(self) -> dict[str, Any]:
        """Returns what a transformers model is called with."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "past_key_values": self.past_key_values,
        }

    def places(self, rows: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns row and column of `input_ids`, on its device, of positions of sequences; int64 on the CPU each."""
        columns = (positions - self.starts[rows]).to(self.input_ids.device)
        in_one_row = len(self.input_ids) == 1
        return torch.zeros_like(columns) if in_one_row else rows.to(columns.device), columns


def model_input(
    batch: TrainBatch, rows: torch.Tensor, lengths: torch.Tensor, device: torch.device, *, packing: bool
) -> ModelInput:
    """Lays out the first `lengths[i]` tokens of sequence `rows[i]` of the batch.

    Args:
        batch: Holds the sequences.
        rows: int64 [b]; without rows one token of padding (see `TrainBatch.padded`).
        lengths: int64 [b].
        device: The model's.
        packing: In one row, instead of a padded row each.
    """
    padded = batch.padded(rows, lengths)
    if not packing or not len(rows):
        return ModelInput(padded.to(device), torch.zeros_like(lengths))
    positions = torch.arange(padded.shape[1]).expand_as(padded)
    inside = positions < lengths[:, None]
    return ModelInput(
        padded[inside][None].to(device), lengths - lengths.cumsum(dim=0), positions[inside][None].to(device)
    )


@torch.no_grad()
def check_packing(model: Policy | Critic) -> None:
    """Checks that a model keeps packed sequences apart: a wrong guess would train silently on wrong log-probs.

    Raises:
        ValueError: a packed sequence is computed otherwise than alone.
    """
    backbone: Any = model.model.base_model if isinstance(model, Policy) else model.backbone
    sequence = torch.arange(_CHECKED_LENGTH, device=model.device)[None] % 4
    position_ids = torch.arange(_CHECKED_LENGTH, device=model.device).repeat(2)[None]
    with model.autocast():
        alone = backbone(input_ids=sequence.flip(1), use_cache=False)[0][0]
        packed_ids = torch.cat([sequence, sequence.flip(1)], dim=1)
        packed = backbone(input_ids=packed_ids, position_ids=position_ids, use_cache=False)[0][0, _CHECKED_LENGTH:]
    difference = float((packed - alone).norm() / alone.norm())
    if not difference < _LARGEST_DIFFERENCE.get(model.dtype, _LARGEST_DIFFERENCE_OF_HALF):
        raise ValueError(
            f"packing=True: in {type(backbone).__name__} packed sequences see one another (relative difference "
            f"{difference:.0e}); set packing to False"
        )
