"""What generation and training would cost on a GPU that is not here: bytes over bandwidth against operations over peak.

    step bytes       weights + keys and values of all running sequences
    step operations  2 * parameters * (running + prefilled) + 4 * layers * heads * head width * context tokens
    step seconds     max(bytes / (bandwidth * reach), operations / (peak * reach)) + overhead

A step at full memory bandwidth or peak is not reached in practice; the reaches below are usual shares of them. They move
all windows and modes alike, but for the balance of generation and training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tppo_rl.config.model_files import load_model_config
from tppo_rl.core.errors import OptionError
from tppo_rl.core.gpus import CARDS
from tppo_rl.plan.costs import Costs
from tppo_rl.plan.windows import LearnerWork, PassWork

BANDWIDTH_REACH = 0.7
"""Share of a GPU's memory bandwidth that a decoding step gets."""
PREFILL_REACH = 0.5
"""Share of its peak that steps bound by operations get."""
LEARNER_REACH = 0.4
"""Share of its peak that training gets (model FLOPs utilization)."""
STEP_OVERHEAD = 2e-3
"""Seconds of a step in which the GPU waits: scheduling, sampling."""
_BYTES = 2
"""Of a weight, key or value in bfloat16."""


@dataclass(frozen=True)
class Device:
    """A GPU's published numbers."""

    bandwidth: float
    """Of its memory, bytes/s."""
    peak: float
    """Dense bfloat16 operations/s."""
    memory: float
    """Bytes."""


DEVICES: dict[str, Device] = {
    "a100": Device(2.039e12, 312e12, CARDS["a100"]),
    "h100": Device(3.35e12, 989e12, CARDS["h100"]),
    "h200": Device(4.8e12, 989e12, CARDS["h200"]),
}
"""NVIDIA's data sheets of the SXM modules (the A100 of 80 GB)."""


@dataclass(frozen=True)
class ModelShape:
    """A decoder-only transformer, as far as its cost goes."""

    parameters: float
    """Of the matrices that every token is multiplied by, output layer included."""
    layers: int
    attention_width: int
    """Heads times the width of one."""
    cache_width: int
    """Key-value heads times the width of one."""

    @property
    def cache_bytes_per_token(self) -> float:
        return 2.0 * self.layers * self.cache_width * _BYTES

    def operations(self, tokens: Any, context_tokens: Any) -> Any:
        """Returns those of a forward pass over some tokens that read so many context tokens together."""
        return 2.0 * self.parameters * tokens + 4.0 * self.layers * self.attention_width * context_tokens

    def bytes_read(self, context_tokens: Any) -> Any:
        """Returns those of one step: all weights, and the keys and values of the contexts."""
        return self.parameters * _BYTES + self.cache_bytes_per_token * context_tokens


def _qwen(
    hidden: int, layers: int, heads: int, key_value_heads: int, intermediate: int, vocabulary: int
) -> dict[str, int]:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "intermediate_size": intermediate,
        "vocab_size": vocabulary,
    }


SHAPES: dict[str, Mapping[str, int]] = {
    "qwen2.5-0.5b": _qwen(896, 24, 14, 2, 4864, 151936),
    "qwen2.5-1.5b": _qwen(1536, 28, 12, 2, 8960, 151936),
    "qwen2.5-7b": _qwen(3584, 28, 28, 4, 18944, 152064),
    "qwen2.5-32b": _qwen(5120, 64, 40, 8, 27648, 152064),
}
"""Configs of the published models, so that nothing is asked of the hub."""


def shape_of_config(config: Mapping[str, Any]) -> ModelShape:
    """Returns the shape of a Hugging Face config of a dense transformer with gated feed-forward layers."""
    hidden, layers = config["hidden_size"], config["num_hidden_layers"]
    heads = config["num_attention_heads"]
    width = config.get("head_dim") or hidden // heads
    attention, cache = heads * width, (config.get("num_key_value_heads") or heads) * width
    layer = hidden * (2 * attention + 2 * cache) + 3 * hidden * config["intermediate_size"]
    return ModelShape(float(layers * layer + hidden * config["vocab_size"]), layers, attention, cache)


def shape_of_model(name: str) -> ModelShape:
    """Returns the shape of a model.

    Args:
        name: Of `SHAPES`, a folder with a config.json, a shipped model or a hub id.

    Raises:
        OptionError: no such model, or one of another kind.
    """
    if name.lower() in SHAPES:
        return shape_of_config(SHAPES[name.lower()])
    config = load_model_config("model", name)
    try:
        return shape_of_config(config)
    except (KeyError, TypeError) as error:
        raise OptionError(
            f"model={name!r}: its config has no {error}; give a dense transformer, or {', '.join(SHAPES)}"
        ) from None


@dataclass(frozen=True)
class RooflineEngineCost:
    """Step cost on some GPUs that hold one engine together."""

    device: Device
    shape: ModelShape
    devices: int = 1
    weight_update: float = 0.0

    @property
    def room(self) -> float:
        free = self.devices * self.device.memory - self.shape.parameters * _BYTES
        return free / self.shape.cache_bytes_per_token

    def seconds(self, running: Any, context_tokens: Any, prompt_tokens: Any) -> Any:
        read = self.shape.bytes_read(context_tokens) / (self.devices * self.device.bandwidth * BANDWIDTH_REACH)
        operations = self.shape.operations(running + prompt_tokens, context_tokens)
        computed = operations / (self.devices * self.device.peak * PREFILL_REACH)
        return np.maximum(read, computed) + STEP_OVERHEAD


@dataclass(frozen=True)
class RooflineLearnerCost:
    """Policy and critic of one shape on some GPUs that hold one learner together; a backward pass costs two forward ones."""

    device: Device
    shape: ModelShape
    devices: int = 1

    def seconds(self, work: LearnerWork, updates: float) -> float:
        del updates  # Optimizer steps are small against passes over so large models.
        operations = self._forward(work.values) + 3 * self._forward(work.policy) + 3 * self._forward(work.critic)
        return operations / (self.devices * self.device.peak * LEARNER_REACH)

    def _forward(self, work: PassWork) -> float:
        # Causal attention reads half of all pairs.
        return float(self.shape.operations(work.positions, work.pairs / 2))


def roofline_costs(device: str, model: str, tensor_parallel: int = 1) -> Costs:
    """Returns the costs of a model on a GPU of `DEVICES`.

    Args:
        device: Key of `DEVICES`.
        model: See `shape_of_model`.
        tensor_parallel: GPUs that hold one engine or one learner together.

    Raises:
        OptionError: an unknown device or model, or weights that do not fit.
    """
    if device not in DEVICES:
        raise OptionError(f"costs={device!r}: no such GPU; use one of {', '.join(DEVICES)}")
    shape, gpu = shape_of_model(model), DEVICES[device]
    needed, there = shape.parameters * _BYTES, tensor_parallel * gpu.memory
    if needed > there:
        least = int(-(-needed // gpu.memory))
        raise OptionError(
            f"tensor_parallel={tensor_parallel}: the weights of model={model!r} are {needed / 1e9:.0f} GB, and "
            f"{there / 1e9:.0f} GB are there; give at least {least}"
        )
    source = f"{model} on {f'{tensor_parallel} x ' if tensor_parallel > 1 else ''}{device}"
    return Costs(
        RooflineEngineCost(gpu, shape, tensor_parallel), RooflineLearnerCost(gpu, shape, tensor_parallel), source
    )
