"""What stands before the windows of a batch, computed once for all passes of an update, without a gradient.

A window's states attend to the keys and values of its context: prompt and earlier windows. With
`context_gradient=False` they are computed before the first optimizer step, and every pass of the policy reads windows
alone. Gradients end where a window begins, as between the segments of Transformer-XL (arXiv 1901.02860).

    contexts  x x x x x .    one forward pass          windows  a a a     forward and backward in every pass,
              y y y . . .    -> keys and values                 b b .     beside keys and values of the contexts
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.micro_batches import micro_batches
from tppo_rl.learner.models import KeysAndValues, Policy
from tppo_rl.learner.packing import ModelInput
from tppo_rl.learner.sharding import same_number_of_passes


@dataclass(frozen=True, eq=False)
class Contexts:
    """Keys and values of what stands before each window, on the CPU: a GPU's memory is left to the passes."""

    lengths: torch.Tensor
    """int64 [B]: positions of each sequence before the first state that predicts a token of its window."""
    layers: KeysAndValues
    """Of each layer, [S, heads, width] both, contexts back to back; no layers where all contexts are empty."""
    padded_positions: int
    """Positions that were computed, padding included."""

    def model_input(
        self, batch: TrainBatch, rows: torch.Tensor, lengths: torch.Tensor, device: torch.device
    ) -> ModelInput:
        """Lays out the windows of sequences `rows[i]` up to position `lengths[i]`, a padded row each.

        Args:
            batch: That whose contexts these are.
            rows: int64 [b]; without rows one token of padding.
            lengths: int64 [b], each above the length of its context.
            device: The model's.
        """
        starts = self.lengths[rows]
        input_ids = batch.padded(rows, lengths - starts, starts)
        longest = int(starts.max()) if len(rows) else 0
        if not longest:
            return ModelInput(input_ids.to(device), starts)
        steps = torch.arange(longest)
        # Padding reads any place: it is not seen.
        offsets = (self.lengths.cumsum(0) - self.lengths)[rows, None]
        places = torch.where(steps < starts[:, None], offsets + steps, 0)
        padded = [
            (_gather(keys, places).to(device), _gather(values, places).to(device)) for keys, values in self.layers
        ]
        return after_contexts(input_ids.to(device), starts, lengths, padded)


def window_contexts(policy: Policy, batch: TrainBatch, micro_batch_tokens: int) -> Contexts:
    """Computes the contexts of a batch's windows with the weights as they are.

    Args:
        policy: One that `check_contexts` has passed.
        batch: May be empty.
        micro_batch_tokens: Most tokens in one forward pass, padding included.
    """
    lengths = batch.window.positions[:, 0] if len(batch) else torch.zeros(0, dtype=torch.int64)
    offsets, total = lengths.cumsum(0) - lengths, int(lengths.sum())
    groups = micro_batches(lengths, lengths.nonzero()[:, 0], micro_batch_tokens)
    layers: KeysAndValues = []
    for rows in same_number_of_passes(policy, groups.rows):
        computed = policy.keys_and_values(batch.padded(rows, lengths[rows]).to(policy.device))
        if not len(rows):
            continue
        layers = layers or [(_room(keys, total), _room(values, total)) for keys, values in computed]
        steps = torch.arange(int(lengths[rows].max()))
        inside = steps < lengths[rows, None]
        places = (offsets[rows, None] + steps)[inside]
        for pair, computed_pair in zip(layers, computed, strict=True):
            for part, computed_part in zip(pair, computed_pair, strict=True):
                part[places] = computed_part.transpose(1, 2).cpu()[inside]
    return Contexts(lengths, layers, groups.padded_positions)


def after_contexts(
    input_ids: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor, layers: KeysAndValues
) -> ModelInput:
    """Lets rows of tokens go on after keys and values of their contexts.

    Each row sees its own context, nothing of the padding behind that, and its own tokens up to each of them.

    Args:
        input_ids: int64 [b, n], padded on the right with any token.
        starts: int64 [b] on the CPU, length of each context.
        lengths: int64 [b] on the CPU, of context and row together.
        layers: Keys and values of each layer, [b, heads, c, width], padded on the right with any finite number.
    """
    rows, width = input_ids.shape
    columns, in_context = torch.arange(width), torch.arange(layers[0][0].shape[2]) < starts[:, None]
    seen = torch.cat(
        [in_context[:, None].expand(-1, width, -1), (columns <= columns[:, None]).expand(rows, -1, -1)], dim=2
    )
    # Padding stays at its row's last position: models that learn positions have no more than the longest sequence needs.
    positions = torch.minimum(starts[:, None] + columns, lengths[:, None] - 1)
    return ModelInput(
        input_ids,
        starts,
        position_ids=positions.to(input_ids.device),
        attention_mask=seen[:, None].to(input_ids.device),
        past_key_values=Cache(layers=[_ContextLayer(keys, values) for keys, values in layers]),
    )


class _ContextLayer(DynamicLayer):
    """Keys and values that nothing is added to, so that a block which is computed again reads the same ones."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def _room(like: torch.Tensor, positions: int) -> torch.Tensor:
    """Returns room for keys or values of so many positions, for those of a pass, [b, heads, n, width]."""
    return torch.empty(positions, like.shape[1], like.shape[3], dtype=like.dtype)


def _gather(flat: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Returns [b, heads, c, width] of keys or values [S, heads, width] at places [b, c]."""
    return flat.index_select(0, places.flatten()).unflatten(0, places.shape).transpose(1, 2)


@torch.no_grad()
def check_contexts(policy: Policy) -> None:
    """Checks that a model goes on after a context as if it had read both at once.

    Raises:
        ValueError: it does not, or it has layers that see only what is near.
    """
    backbone = policy.model.base_model
    remedy = "set context_gradient to True"
    kinds = set(getattr(policy.model.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ValueError(
            f"context_gradient=False: {type(backbone).__name__} has layers of {', '.join(sorted(kinds))}; {remedy}"
        )
    sequences, starts = torch.tensor([[0, 1, 2, 1], [1, 0, 2, 0]]), torch.tensor([1, 3])
    windows = torch.tensor([[1, 2, 1], [0, 0, 0]])
    with policy.autocast():
        whole = backbone(input_ids=sequences.to(policy.device), use_cache=False).last_hidden_state[:, -1]
        contexts = policy.keys_and_values(sequences[:, :3].to(policy.device))
        after = after_contexts(windows.to(policy.device), starts, torch.tensor([4, 4]), contexts)
        last = backbone(**after.of_model(), use_cache=False).last_hidden_state[[0, 1], [2, 0]]
    difference = float((last - whole).norm() / whole.norm())
    if not difference < (1e-3 if policy.dtype in (torch.float32, torch.float64) else 0.05):
        raise ValueError(
            f"context_gradient=False: {type(backbone).__name__} computes otherwise after a context (relative difference "
            f"{difference:.0e}); {remedy}"
        )
