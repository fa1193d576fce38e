"""Layout of a micro-batch's sequences in the input of a model: a padded row for each, or one row for all without padding.

    padded    a a a a a .        packed    a a a a a b b b c c c c
              b b b . . .        positions 0 1 2 3 4 0 1 2 0 1 2 3
              c c c c . .

In the packed row, a sequence begins where positions start at 0 again. From the positions transformers builds a mask (sdpa,
flex_attention) or chooses kernels for variable lengths (flash_attention_2), so that no token sees another sequence.
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
    """int64 [b] on the CPU: position of each sequence in column 0; negative if the sequence begins in a later column."""
    position_ids: torch.Tensor | None = None
    """int64, shaped as `input_ids`, if packed or after contexts; None: every row begins at 0."""
    attention_mask: torch.Tensor | None = None
    """bool [b, 1, n, c + n], after contexts of at most c positions: positions of context and row that each column sees."""
    past_key_values: Any = None
    """transformers' cache with keys and values of the contexts; None: no contexts."""

    def of_model(self) -> dict[str, Any]:
        """Returns the keyword arguments for a transformers model."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "attention_mask": self.attention_mask,
            "past_key_values": self.past_key_values,
        }

    def places(self, rows: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns rows and columns in `input_ids`, on its device, of positions in sequences (both int64 [N] on the CPU)."""
        columns = (positions - self.starts[rows]).to(self.input_ids.device)
        in_one_row = len(self.input_ids) == 1
        return torch.zeros_like(columns) if in_one_row else rows.to(columns.device), columns


def model_input(
    batch: TrainBatch, rows: torch.Tensor, lengths: torch.Tensor, device: torch.device, *, packing: bool
) -> ModelInput:
    """Lays out the first `lengths[i]` tokens of sequence `rows[i]` of the batch.

    Args:
        batch: Holds the sequences.
        rows: int64 [b], sequences; without rows the result is one token of padding (see `TrainBatch.padded`).
        lengths: int64 [b], number of tokens of each.
        device: Device of the model.
        packing: Whether all stand in one row, instead of a padded row for each.
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
        ValueError: the model computes something else for a packed sequence than for the same one alone.
    """
    backbone: Any = model.model.base_model if isinstance(model, Policy) else model.backbone
    sequence = torch.arange(_CHECKED_LENGTH, device=model.device)[None] % 4
    position_ids = torch.arange(_CHECKED_LENGTH, device=model.device).repeat(2)[None]

    def difference_of_both() -> float:
        with model.autocast():
            alone = backbone(input_ids=sequence.flip(1), use_cache=False)[0][0]
            packed_ids = torch.cat([sequence, sequence.flip(1)], dim=1)
            packed = backbone(input_ids=packed_ids, position_ids=position_ids, use_cache=False)[0][0, _CHECKED_LENGTH:]
        return float((packed - alone).norm() / alone.norm())

    difference = model.within(difference_of_both)
    if not difference < _LARGEST_DIFFERENCE.get(model.dtype, _LARGEST_DIFFERENCE_OF_HALF):
        raise ValueError(
            f"packing=True: in {type(backbone).__name__} packed sequences see one another (relative difference "
            f"{difference:.0e}); set packing to False"
        )
