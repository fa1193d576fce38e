"""Policy and critic around any causal language model of transformers.

Both stay in evaluation mode while they are trained: dropout would make the trainer's log-probs differ from the
engine's. Sequences are padded on the right and have no attention mask: under a causal mask no token sees the padding
after it, position ids count from 0 in every row, and attention kernels are fastest without a mask. Packed sequences
(see `packing`) come with their position ids instead.

Weights are float32 for every compute dtype, unless `weights_dtype` is bfloat16: at the learning rates of reinforcement
learning a step is often smaller than the spacing of bfloat16 numbers and is then rounded away.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from tppo_rl.learner.empty_models import parameters_on_meta
from tppo_rl.learner.output_layer import head_suffices
from tppo_rl.maths.log_probs import TokenLogProbs, token_log_probs
from tppo_rl.maths.value_forms import SquaredError, ValueForm

MAX_LOGITS = 2**25
"""Most logits (positions x vocabulary) that are held at once; more are computed in parts, and again in the backward pass.

Their gradient is of the same size: together 256 MiB in float32. With a vocabulary of 150,000 a part still has 220
positions, enough for a matrix product at full speed. Parts below 2**23 take MORE memory on a CPU: glibc then cuts them
out of its heap, which becomes fragmented. `tppo-rl bench memory` measures it.
"""

KeysAndValues = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of each layer."""

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def parse_dtype(name: str) -> torch.dtype:
    """Returns the torch dtype of "float32", "bfloat16", "float16" or "float64".

    Raises:
        ValueError: another name.
    """
    if name not in _DTYPES:
        raise ValueError(f"dtype={name!r} is unknown: use one of {', '.join(_DTYPES)}")
    return _DTYPES[name]


def load_causal_lm(
    source: str,
    dtype: torch.dtype,
    *,
    weights_dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
    num_layers: int | None = None,
    empty: bool = False,
) -> Any:
    """Loads a causal language model.

    Args:
        source: Local folder or hub id.
        dtype: Compute dtype of the training.
        weights_dtype: Dtype of the weights, and so of gradients and moments; float64 if `dtype` is float64.
        attention: "sdpa", "flash_attention_2" or "flex_attention".
        num_layers: Number of its first layers to load, at most as many as it has; None: all.
        empty: Build the model without its weights (see `empty_models`).

    Raises:
        ValueError: no model can be loaded from `source`.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    weights = torch.float64 if dtype == torch.float64 else weights_dtype
    verbosity = transformers_logging.get_verbosity()
    try:
        config = AutoConfig.from_pretrained(source)
        if num_layers is not None:
            _keep_layers(config, num_layers)
            # transformers would list the weights of the layers that are left out.
            transformers_logging.set_verbosity_error()
        if empty:
            with parameters_on_meta():
                return AutoModelForCausalLM.from_config(config, dtype=weights, attn_implementation=attention)
        return AutoModelForCausalLM.from_pretrained(source, config=config, dtype=weights, attn_implementation=attention)
    except (OSError, ValueError) as error:
        raise ValueError(f"no language model at {source!r}: give a folder that holds one, or a hub id") from error
    finally:
        transformers_logging.set_verbosity(verbosity)


def _keep_layers(config: Any, num_layers: int) -> None:
    """Reduces a transformers configuration to the model's first layers; it must have that many."""
    assert num_layers <= config.num_hidden_layers, "checked with the options"
    config.num_hidden_layers = num_layers
    if getattr(config, "layer_types", None) is not None:
        config.layer_types = config.layer_types[:num_layers]


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the layers that transformers can checkpoint, in order; none is inside another."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks: list[nn.Module] = []
    inside: set[nn.Module] = set()
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and module not in inside:
            blocks.append(module)
            inside.update(module.modules())
    return blocks


def recompute_activations(model: nn.Module) -> None:
    """Keeps only the inputs of the transformer blocks for the backward pass, which computes the blocks again.

    transformers' own switch acts in training mode alone, and that would turn dropout on.

    Raises:
        ValueError: transformers can checkpoint no layer of the model.
    """
    blocks = transformer_blocks(model)
    if not blocks:
        raise ValueError(
            f"gradient_checkpointing=True: {type(model).__name__} has no layers that transformers can checkpoint; set "
            "gradient_checkpointing to False"
        )
    for block in blocks:
        # `forward` runs inside of the module's hooks, so sharded weights are gathered before the block is computed again.
        # Nothing is random in evaluation mode, so no state of random generators has to be kept.
        forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
        block.forward = forward  # type: ignore[method-assign, assignment]


def compute_logits_in_float32(model: Any, dtype: torch.dtype) -> None:
    """Makes the output layer compute in float32, with its weights rounded to `dtype`, as an engine of that dtype has them."""
    head = model.get_output_embeddings()

    def forward(hidden: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = (None if part is None else part.to(dtype).float() for part in (head.weight, head.bias))
            return nn.functional.linear(hidden.float(), cast(torch.Tensor, weight), bias)

    head.forward = forward


class _EvaluationMode(nn.Module):
    """A module that cannot be put into training mode."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def train(self, mode: bool = True) -> _EvaluationMode:
        return super().train(False)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Returns a context that computes in `dtype`, if that is of half precision."""
        if self.dtype in (torch.float32, torch.float64):
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def within(self, function: Callable[[], _T]) -> _T:
        """Returns a function's result; where the model is sharded, its parts can be called meanwhile."""
        return function()


class Policy(_EvaluationMode):
    """A causal language model that gives the log-probs of tokens."""

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32) -> None:
        """Wraps a transformers causal language model, which computes in `dtype`."""
        super().__init__(dtype)
        self.model = model
        self.train()
        self._head_suffices = head_suffices(model)
        if not self._head_suffices:
            _logger.warning(
                "%s does more than lm_head(hidden states): logits are computed at every position, which takes more "
                "memory and time",
                type(model).__name__,
            )

    def forward(
        self,
        input_ids: torch.Tensor,
        rows: torch.Tensor,
        positions: torch.Tensor,
        tokens: torch.Tensor,
        *,
        temperature: float,
        entropy_gradient: bool = False,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
    ) -> TokenLogProbs:
        """Returns log-prob and entropy of N tokens, float32 [N]; only their positions pass the output layer.

        Args:
            input_ids: int64 [b, n], padded on the right with any token.
            rows: int64 [N], row of each token.
            positions: int64 [N], column of the state that predicts the token: one before the token's own.
            tokens: int64 [N], the tokens.
            temperature: Sampling temperature.
            entropy_gradient: Whether the entropy carries a gradient.
            position_ids: int64 [b, n], for packed sequences and for sequences after contexts; None: from 0 in every row.
            attention_mask: bool [b, 1, n, c + n], positions of its context and its row that each position sees; None: all
                before it.
            past_key_values: transformers' cache with keys and values of contexts, padded to c positions; None: no contexts.
        """
        inputs = {
            "input_ids": input_ids,
            "position_ids": position_ids,
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": False,
        }
        with self.autocast():
            if not self._head_suffices:
                logits = self.model(**inputs).logits[rows, positions]
                return token_log_probs(logits, tokens, temperature=temperature, entropy_gradient=entropy_gradient)
            hidden = self.model.base_model(**inputs).last_hidden_state[rows, positions]
            part = max(1, MAX_LOGITS // self.model.get_output_embeddings().weight.shape[0])
            if len(tokens) <= part:
                return self._head(hidden, tokens, temperature, entropy_gradient)
            parts = [
                cast(TokenLogProbs, checkpoint(self._head, *pair, temperature, entropy_gradient, use_reentrant=False))
                for pair in zip(hidden.split(part), tokens.split(part), strict=True)
            ]
            return TokenLogProbs(*(torch.cat(column) for column in zip(*parts, strict=True)))

    @torch.no_grad()
    def read(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
    ) -> None:
        """Reads tokens, so that `past_key_values` records their keys and values; arguments are those of `forward`."""
        with self.autocast():
            self.model.base_model(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=False,
            )

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Returns the model's own logits, [b, n, V], for int64 token ids [b, n], without any training code."""
        with self.autocast():
            return self.model(input_ids=input_ids, use_cache=False).logits

    def _head(
        self, hidden: torch.Tensor, tokens: torch.Tensor, temperature: float, entropy_gradient: bool
    ) -> TokenLogProbs:
        logits = self.model.get_output_embeddings()(hidden)
        return token_log_probs(logits, tokens, temperature=temperature, entropy_gradient=entropy_gradient)


class Critic(_EvaluationMode):
    """A causal language model's backbone with a scalar value at every position.

    The value head starts at zero: the outputs of a cold critic are 0 everywhere instead of noise of the backbone's scale.
    """

    def __init__(self, model: Any, dtype: torch.dtype = torch.float32, form: ValueForm | None = None) -> None:
        """Takes the backbone of a transformers causal language model, which computes in `dtype`.

        Args:
            model: See above.
            dtype: Compute dtype of the training.
            form: How the head's outputs stand for a value; None: as they are (`SquaredError`).

        Raises:
            ValueError: the model has no backbone apart from its output layer.
        """
        super().__init__(dtype)
        if model.base_model is model:
            raise ValueError(f"critic: {type(model).__name__} has no base model: choose another architecture for it")
        self.backbone = model.base_model
        width = model.get_output_embeddings().weight.shape[1]
        # All trained parameters have one dtype, so beside adapters the head has theirs.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.form = form or SquaredError()
        self.value_head = nn.Linear(width, self.form.num_outputs, dtype=trained[0].dtype)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.train()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Any = None,
        *,
        outputs: bool = False,
    ) -> torch.Tensor:
        """Returns V(s) of the state after each position, [b, n] in the dtype of the weights, float32 for bfloat16.

        Args:
            input_ids: int64 [b, n], padded on the right with any token; values on padding mean nothing.
            position_ids: As for `Policy.forward`.
            attention_mask: As for `Policy.forward`.
            past_key_values: As for `Policy.forward`.
            outputs: Return the head's outputs, [b, n, K], which `form.loss` takes, instead of values.
        """
        with self.autocast():
            output = self.backbone(
                input_ids=input_ids,
                position_ids=position_ids,
                attention_mask=attention_mask,
                past_key_values=past_key_values,
                use_cache=False,
            )
            hidden = output.last_hidden_state
        head = self.value_head
        dtype = torch.promote_types(head.weight.dtype, torch.float32)
        predicted = nn.functional.linear(hidden.to(dtype), head.weight.to(dtype), head.bias.to(dtype))
        # A clone, no view: the hook that gathers sharded weights for the backward pass sits on the returned tensor.
        return (predicted if outputs else self.form.values(predicted)).clone()
