"""Whether a model's logits are its output layer applied to the hidden states, so that few positions need to pass it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from tppo_rl.core.insides import TRANSFORMERS
from tppo_rl.learner.empty_models import is_empty


@torch.no_grad()
def head_suffices(model: Any) -> bool:
    """Whether the logits are the output layer applied to the backbone's hidden states.

    Some architectures scale or cap their logits afterwards; a wrong guess would train silently on wrong log-probs.
    """
    if model.base_model is model or model.get_output_embeddings() is None:
        return False
    if is_empty(model):
        return _suffices_without_weights(model)
    input_ids = torch.tensor([[0, 1, 0]], device=next(model.parameters()).device)
    with _attention_of_every_device(model):
        hidden = model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        logits = model(input_ids=input_ids, use_cache=False).logits
    return torch.allclose(model.get_output_embeddings()(hidden), logits, rtol=1e-4, atol=1e-5)


@contextlib.contextmanager
def _attention_of_every_device(model: Any) -> Iterator[None]:
    """Lets the model run where it was loaded, on a CPU and in float32, which flash attention does not."""
    config = model.config
    with TRANSFORMERS.insides("PreTrainedConfig._attn_implementation"):
        asked = config._attn_implementation
    config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        config._attn_implementation = asked


class _Outputs(dict[str, Any]):
    """A backbone's outputs as transformers' models read them: by attribute, by key or by position; the rest is None."""

    def __getattr__(self, name: str) -> Any:
        return self.get(name)

    def __getitem__(self, key: Any) -> Any:
        return list(self.values())[key] if isinstance(key, int | slice) else super().__getitem__(key)


@torch.no_grad()
def _suffices_without_weights(model: Any) -> bool:
    """Whether a model's logits are its output layer applied to the backbone's hidden states, seen without its weights.

    Backbone and output layer are replaced meanwhile: what the model does between and after them is its class's own.
    """
    generator = torch.Generator().manual_seed(0)
    width = model.get_output_embeddings().weight.shape[1]
    # Large: a cap that bends small logits by less than rounding must be seen.
    hidden = 10 * torch.randn((1, 3, width), generator=generator)
    weight = torch.randn((8, width), generator=generator)
    head, backbone = model.get_output_embeddings(), model.base_model
    replaced = {
        head: lambda hidden: nn.functional.linear(hidden, weight),
        backbone: lambda *_, **__: _Outputs(last_hidden_state=hidden),
    }
    before = {module: module.__dict__.get("forward") for module in replaced}
    try:
        for module, forward in replaced.items():
            module.forward = forward
        logits = model(input_ids=torch.tensor([[0, 1, 0]]), use_cache=False).logits
    finally:
        for module, forward in before.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward
    return not logits.is_meta and torch.allclose(nn.functional.linear(hidden, weight), logits, rtol=1e-4, atol=1e-5)
