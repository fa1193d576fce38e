"""Contexts of a batch's windows: keys and values that the windows attend to, without a gradient.

A window's states attend to the keys and values of its context: prompt and earlier windows. With
`context_gradient=False` they are computed before the first optimizer step, and every pass of the policy reads windows
alone. Gradients end where a window begins, as between the segments of Transformer-XL (arXiv 1901.02860).

    contexts  x x x x x .    one forward pass          windows  a a a     forward and backward in every pass,
              y y y . . .    -> keys and values                 b b .     beside keys and values of the contexts

Parts that earlier updates have computed are not computed again (see `context_cache`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicLayer

from tppo_rl.learner.batch import TrainBatch
from tppo_rl.learner.micro_batches import MicroBatches, micro_batches
from tppo_rl.learner.models import Critic, KeysAndValues, Policy
from tppo_rl.learner.packing import ModelInput
from tppo_rl.learner.sharding import same_number_of_passes
from tppo_rl.learner.shared_segments import shared_segments

Shapes = tuple[tuple[int, int], ...]
"""Heads and width of the keys and then the values of each layer."""


@dataclass(frozen=True, eq=False)
class Contexts:
    """Keys and values of the first positions of each sequence, on the CPU, to leave a GPU's memory to the passes."""

    lengths: torch.Tensor
    """int64 [B]: number of positions of each sequence's context."""
    states: torch.Tensor
    """[S, W]: keys and values of all layers side by side, contexts back to back; W is 0 if all are empty."""
    shapes: Shapes
    """Division of a row of `states` into layers; empty if all contexts are."""

    @property
    def offsets(self) -> torch.Tensor:
        """int64 [B]: row of `states` of each context's first position."""
        return self.lengths.cumsum(0) - self.lengths

    def of(self, row: int) -> torch.Tensor:
        """Returns the states of one sequence's context, [c, W]."""
        start = int(self.offsets[row])
        return self.states[start : start + int(self.lengths[row])]

    def model_input(
        self,
        batch: TrainBatch,
        rows: torch.Tensor,
        lengths: torch.Tensor,
        device: torch.device,
        *,
        record: bool = False,
    ) -> ModelInput:
        """Lays out the tokens of sequences `rows[i]` from the end of their contexts to position `lengths[i]`, in padded rows.

        Args:
            batch: The batch of these contexts.
            rows: int64 [b], sequences to lay out; without rows the result is one token of padding.
            lengths: int64 [b], position up to which each is laid out, above the length of its context.
            device: Device of the model.
            record: Whether `recorded` can return the states of these tokens afterwards.
        """
        return self.after(batch, rows, self.lengths[rows], lengths, device, record=record)

    def after(
        self,
        batch: TrainBatch,
        rows: torch.Tensor,
        starts: torch.Tensor,
        stops: torch.Tensor,
        device: torch.device,
        *,
        record: bool = False,
    ) -> ModelInput:
        """Lays out positions `starts[i]` to `stops[i]` of sequences `rows[i]` after the first `starts[i]` of their contexts.

        The arguments are otherwise those of `model_input`; `starts` and `stops` are int64 [b].
        """
        input_ids = batch.padded(rows, stops - starts, starts).to(device)
        longest = int(starts.max()) if len(rows) else 0
        if not longest:
            cache = Cache(layer_class_to_replicate=_RecordingLayer) if record and len(rows) else None
            return ModelInput(input_ids, starts, past_key_values=cache)
        steps = torch.arange(longest)
        # Padding may read any place, because nothing attends to it.
        places = torch.where(steps < starts[:, None], self.offsets[rows, None] + steps, 0)
        states = self.states.index_select(0, places.flatten()).unflatten(0, places.shape).to(device)
        return after_contexts(input_ids, starts, stops, _layers(states, self.shapes), record=record)


def no_contexts(num_sequences: int) -> Contexts:
    """Returns empty contexts of some sequences."""
    return Contexts(torch.zeros(num_sequences, dtype=torch.int64), torch.zeros(0, 0), ())


@dataclass(frozen=True)
class Completed:
    """Contexts, and the work to complete them."""

    contexts: Contexts
    positions: int
    """Number of positions that were computed."""
    padded_positions: int
    """Number of positions that were computed, padding included."""


def window_contexts(
    policy: Policy,
    batch: TrainBatch,
    micro_batch_tokens: int,
    at_hand: Contexts | None = None,
    wanted: torch.Tensor | None = None,
) -> Completed:
    """Computes the contexts of a batch's windows with the present weights.

    Args:
        policy: A policy that `check_contexts` has passed.
        batch: B fragments; may be empty.
        micro_batch_tokens: Most tokens in one forward pass, padding included.
        at_hand: Parts of the contexts that are known already.
        wanted: int64 [N], windows whose contexts are completed; the others keep their known parts. None: all windows.
    """
    at_hand = at_hand or no_contexts(len(batch))
    lengths = context_lengths(batch)
    if wanted is not None:
        lengths = at_hand.lengths.index_copy(0, wanted, lengths[wanted])
    # Known states may be of other weights, so nothing after them is shared.
    known = at_hand.lengths > 0
    levels = shared_segments(batch.padded(torch.arange(len(batch)), lengths), at_hand.lengths, lengths, known)
    segments = [segment for level in levels for segment in level]
    starts = torch.tensor([segment.start for segment in segments], dtype=torch.int64)
    stops = torch.tensor([segment.stop for segment in segments], dtype=torch.int64)
    reads = torch.tensor([segment.rows[0] for segment in segments], dtype=torch.int64)
    groups = _level_by_level([len(level) for level in levels], starts, stops, micro_batch_tokens)
    result = _room(lengths, at_hand.states, at_hand.shapes)
    offsets = result.offsets
    if at_hand.shapes:
        within = torch.arange(len(batch)).repeat_interleave(at_hand.lengths)
        result.states[torch.arange(len(within)) + (offsets - at_hand.offsets)[within]] = at_hand.states
    for group in same_number_of_passes(policy, [rows for part in groups for rows in part.rows]):
        inputs = result.after(batch, reads[group], starts[group], stops[group], policy.device, record=True)
        policy.read(**inputs.of_model())
        if len(group):
            own, shapes = recorded(inputs)
            result = result if result.shapes else _room(lengths, own[0], shapes)
            for states, segment in zip(own, [segments[index] for index in group.tolist()], strict=True):
                steps = torch.arange(segment.start, segment.stop)
                result.states[offsets[list(segment.rows), None] + steps] = states[: len(steps)]
    return Completed(result, sum(part.positions for part in groups), sum(part.padded_positions for part in groups))


def _room(lengths: torch.Tensor, like: torch.Tensor, shapes: Shapes) -> Contexts:
    """Returns contexts whose states, as wide as those of `like`, are yet to be written."""
    # Padding reads states before they are written, and what was in the memory before may be NaN, which passes every mask.
    return Contexts(lengths, like.new_zeros(int(lengths.sum()), like.shape[1]), shapes)


def _level_by_level(
    sizes: list[int], starts: torch.Tensor, stops: torch.Tensor, micro_batch_tokens: int
) -> list[MicroBatches]:
    """Groups segments into micro-batches, those of one level after those of the level before."""
    levels = torch.arange(len(starts)).split(sizes)
    return [micro_batches(stops - starts, level, micro_batch_tokens, contexts=starts) for level in levels]


def context_lengths(batch: TrainBatch) -> torch.Tensor:
    """Returns each sequence's number of positions before the first state that predicts a window token, int64 [B]."""
    return batch.window.positions[:, 0] if len(batch) else torch.zeros(0, dtype=torch.int64)


def recorded(inputs: ModelInput, rows: torch.Tensor | None = None) -> tuple[torch.Tensor, Shapes]:
    """Returns the states of the tokens that a model has read, [b, n, W] on the CPU, and their shapes; padding holds any.

    Args:
        inputs: Input of a pass that has been made, laid out with `record`.
        rows: int64 [b] on the CPU, rows of the input; None: all.
    """
    parts = [part for layer in inputs.past_key_values.layers for part in layer.own]
    if rows is not None:
        parts = [part[rows.to(part.device)] for part in parts]
    shapes = tuple((part.shape[1], part.shape[3]) for part in parts)
    return torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=2).cpu(), shapes


def after_contexts(
    input_ids: torch.Tensor,
    starts: torch.Tensor,
    lengths: torch.Tensor,
    layers: KeysAndValues,
    *,
    record: bool = False,
) -> ModelInput:
    """Returns the input for rows of tokens that go on after keys and values of their contexts.

    Each token sees the context of its row, not the padding behind that, and the tokens of its row up to itself.

    Args:
        input_ids: int64 [b, n], padded on the right with any token.
        starts: int64 [b] on the CPU, length of each context.
        lengths: int64 [b] on the CPU, length of context and row together.
        layers: Keys and values of each layer, [b, heads, c, width], padded on the right with any finite number.
        record: Whether `recorded` can return the states of the rows afterwards.
    """
    rows, width = input_ids.shape
    columns, in_context = torch.arange(width), torch.arange(layers[0][0].shape[2]) < starts[:, None]
    seen = torch.cat(
        [in_context[:, None].expand(-1, width, -1), (columns <= columns[:, None]).expand(rows, -1, -1)], dim=2
    )
    # Padding gets its row's last position: models with learned positions may have none beyond the longest sequence.
    positions = torch.minimum(starts[:, None] + columns, lengths[:, None] - 1)
    layer = _RecordingLayer if record else _ContextLayer
    return ModelInput(
        input_ids,
        starts,
        position_ids=positions.to(input_ids.device),
        attention_mask=seen[:, None].to(input_ids.device),
        past_key_values=Cache(layers=[layer(keys, values) for keys, values in layers]),
    )


class _ContextLayer(DynamicLayer):
    """Keys and values of a context. They never grow, so a block that is computed again reads the same ones."""

    def __init__(self, keys: torch.Tensor | None = None, values: torch.Tensor | None = None) -> None:
        super().__init__()
        if keys is not None and values is not None:
            self.lazy_initialization(keys, values)
            self.keys, self.values = keys, values

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_args: Any, **_kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            return key_states, value_states
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


class _RecordingLayer(_ContextLayer):
    """Also keeps the states that were read after the context."""

    own: tuple[torch.Tensor, torch.Tensor]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.own = key_states.detach(), value_states.detach()
        return super().update(key_states, value_states, *args, **kwargs)


def _layers(states: torch.Tensor, shapes: Shapes) -> KeysAndValues:
    """Returns the keys and values [b, heads, c, width] of each layer in states [b, c, W]."""
    parts = [
        part.unflatten(2, shape).transpose(1, 2)
        for part, shape in zip(states.split([_size(shape) for shape in shapes], dim=2), shapes, strict=True)
    ]
    return list(zip(parts[::2], parts[1::2], strict=True))


def _size(shape: tuple[int, int]) -> int:
    heads, width = shape
    return heads * width


@torch.no_grad()
def check_contexts(model: Policy | Critic) -> None:
    """Checks that a model computes the same after a context as when it reads context and window at once.

    Raises:
        ValueError: it computes something else, or it has layers with local attention.
    """
    backbone: Any = model.model.base_model if isinstance(model, Policy) else model.backbone
    setting, remedy = "context_gradient=False", "set context_gradient to True"
    if isinstance(model, Critic):
        setting, remedy = "context_cache_tokens", "set context_cache_tokens to 0"
    kinds = set(getattr(backbone.config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ValueError(f"{setting}: {type(backbone).__name__} has layers of {', '.join(sorted(kinds))}; {remedy}")
    sequences, starts = torch.tensor([[0, 1, 2, 1], [1, 0, 2, 0]]), torch.tensor([1, 3])
    windows = torch.tensor([[1, 2, 1], [0, 0, 0]])

    def difference_of_both() -> float:
        with model.autocast():
            whole = backbone(input_ids=sequences.to(model.device), use_cache=False).last_hidden_state[:, -1]
            cache = Cache(layer_class_to_replicate=_RecordingLayer)
            backbone(input_ids=sequences[:, :3].to(model.device), past_key_values=cache, use_cache=False)
            contexts: KeysAndValues = [layer.own for layer in cache.layers]  # type: ignore[union-attr]
            after = after_contexts(windows.to(model.device), starts, torch.tensor([4, 4]), contexts)
            last = backbone(**after.of_model(), use_cache=False).last_hidden_state[[0, 1], [2, 0]]
        return float((last - whole).norm() / whole.norm())

    difference = model.within(difference_of_both)
    if not difference < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.05):
        raise ValueError(
            f"{setting}: {type(backbone).__name__} computes otherwise after a context (relative difference "
            f"{difference:.0e}); {remedy}"
        )
