"""Sizes of a causal language model, read from its config; no weights are loaded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from tppo_rl.base_models import resolve_model
from tppo_rl.config.model_files import load_model_config
from tppo_rl.core.errors import OptionError


@dataclass(frozen=True)
class Shape:
    """Sizes of a causal language model."""

    parameters: int
    embedding: int
    """Parameters of the embedding."""
    of_layer: int
    """Parameters of one decoder layer."""
    output: int
    """Parameters of an output layer of its own; 0 if it is tied."""
    layers: int
    hidden: int
    heads: int
    queries: int
    """Width of the queries of one token and layer, all heads together."""
    keys: int
    """Width of the keys of one token and layer, all key-value heads together."""
    mlp: int
    """Width of the MLP; in a mixture of experts of those that one token uses."""
    vocabulary: int
    linear: tuple[tuple[str, int, int], ...]
    """The linear layers of all decoder layers: last part of the name, width of the inputs, width of the outputs."""

    @classmethod
    def of(cls, model: str) -> Shape:
        """Reads the config of a folder, hub id or shipped model.

        Raises:
            OptionError: there is no such model, or transformers does not know it.
        """
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        load_model_config("--model", model)
        try:
            config = AutoConfig.from_pretrained(resolve_model(model))
        except (OSError, ValueError) as error:
            raise OptionError(f"--model={model!r}: transformers cannot read its config: {error}") from None
        with torch.device("meta"):
            built: Any = AutoModelForCausalLM.from_config(config)
        text = config.get_text_config()
        heads = text.num_attention_heads
        head = getattr(text, "head_dim", None) or text.hidden_size // heads
        experts = getattr(text, "num_experts_per_tok", None) or 1
        mlp = (experts > 1 and getattr(text, "moe_intermediate_size", None)) or getattr(text, "intermediate_size", None)
        embedding = built.get_input_embeddings().weight
        head_layer = built.get_output_embeddings()
        tied = head_layer is None or head_layer.weight is embedding
        stack = _decoder_layers(built, text.num_hidden_layers)
        return cls(
            parameters=sum(parameter.numel() for parameter in built.parameters()),
            embedding=embedding.numel(),
            of_layer=sum(parameter.numel() for parameter in stack.parameters()) // text.num_hidden_layers,
            output=0 if tied else head_layer.weight.numel(),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            heads=heads,
            queries=head * heads,
            keys=head * (getattr(text, "num_key_value_heads", None) or heads),
            mlp=experts * (mlp or 4 * text.hidden_size),
            vocabulary=text.vocab_size,
            linear=tuple(_linear_layers(stack)),
        )

    def first_layers(self, layers: int | None) -> Shape:
        """The backbone of its first layers, without an output layer."""
        kept = self.layers if layers is None else layers
        left_out = self.output + (self.layers - kept) * self.of_layer
        linear = self.linear[: len(self.linear) * kept // self.layers]
        return replace(self, parameters=self.parameters - left_out, output=0, layers=kept, linear=linear)

    def adapters(self, rank: int, targets: str | tuple[str, ...]) -> int:
        """Parameters of adapters of a rank beside the named linear layers, or beside all: any text."""
        return sum(
            rank * (inputs + outputs)
            for name, inputs, outputs in self.linear
            if isinstance(targets, str) or name in targets
        )


def _decoder_layers(model: Any, layers: int) -> Any:
    from torch import nn

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    return max(stacks, key=lambda stack: sum(parameter.numel() for parameter in stack.parameters()))


def _linear_layers(stack: Any) -> Iterable[tuple[str, int, int]]:
    from torch import nn

    for name, module in stack.named_modules():
        last = name.rpartition(".")[2]
        if isinstance(module, nn.Linear):
            yield last, module.in_features, module.out_features
        elif type(module).__name__ == "Conv1D":  # GPT-2's, whose weight is transposed.
            yield last, module.weight.shape[0], module.weight.shape[1]
