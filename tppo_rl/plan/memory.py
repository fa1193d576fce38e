"""Memory of a run, process by process, from the shapes of its models and its options, before anything is started.

Weights, gradients and moments are exact. Activations are those of a decoder layer with a gated MLP, as torch keeps them for the
backward pass; kept numbers a token and layer, for hidden size h, width k of keys, and width i of the MLP:

    float32            4 * (8h + 2k + 4i) bytes
    half precision     2 * (15h + 2k + 4i) bytes, and 2 bytes for every weight of the linear layers (its cast)

Keys and values of one token take 2 * layers * k numbers of the engine's dtype.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any, Literal

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError

GIB = 2**30
_PROCESS = 0.8 * GIB
"""A Python process that has imported torch, transformers, Ray or vLLM."""
_LARGEST_LOGITS = 2**25
"""Logits that a learner holds at once (`tppo_rl.learner.models`)."""
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


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
    keys: int
    """Width of the keys of one token and layer, all key-value heads together."""
    mlp: int
    """Width of the MLP; in a mixture of experts of those that one token uses."""
    vocabulary: int

    @classmethod
    def of(cls, model: str) -> Shape:
        """Reads the config of a folder, hub id or shipped model; no weights are loaded."""
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        config = AutoConfig.from_pretrained(resolve_model(model))
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
        return cls(
            parameters=sum(parameter.numel() for parameter in built.parameters()),
            embedding=embedding.numel(),
            of_layer=_parameters_of_layers(built, text.num_hidden_layers) // text.num_hidden_layers,
            output=0 if tied else head_layer.weight.numel(),
            layers=text.num_hidden_layers,
            hidden=text.hidden_size,
            keys=head * (getattr(text, "num_key_value_heads", None) or heads),
            mlp=experts * (mlp or 4 * text.hidden_size),
            vocabulary=text.vocab_size,
        )

    def first_layers(self, layers: int | None) -> Shape:
        """The backbone of its first layers, without an output layer."""
        kept = self.layers if layers is None else layers
        left_out = self.output + (self.layers - kept) * self.of_layer
        return replace(self, parameters=self.parameters - left_out, output=0, layers=kept)


def _parameters_of_layers(model: Any, layers: int) -> int:
    from torch import nn

    stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList) and len(module) == layers]
    return max((sum(parameter.numel() for parameter in stack.parameters()) for stack in stacks), default=0)


Process = Literal["driver", "learner", "env-runner"]


@dataclass(frozen=True)
class Part:
    """What takes memory."""

    process: Process
    name: str
    size: int
    """Bytes in one such process."""
    meaning: str


@dataclass(frozen=True)
class Memory:
    """Memory of a run."""

    parts: tuple[Part, ...]
    processes: dict[Process, int]
    """Number of processes of each kind. What a learner or env-runner in the driver's process needs is the driver's."""

    def of(self, process: Process) -> int:
        """Bytes of one process of a kind."""
        return sum(part.size for part in self.parts if part.process == process)

    @property
    def total(self) -> int:
        """Bytes of all processes."""
        return sum(self.of(process) * number for process, number in self.processes.items())


def memory_of(options: Options) -> Memory:
    """Returns the memory that a run with these options needs."""
    policy = Shape.of(str(options.models.policy_model))
    learners, rollout = options.learners, options.rollout
    numbers: dict[Process, int] = {
        "driver": 1,
        "learner": learners.num_learners,
        "env-runner": rollout.num_env_runners,
    }
    processes = {process: number for process, number in numbers.items() if number}
    parts = [Part(process, "process", int(_PROCESS), "Python, torch, Ray, vLLM") for process in processes]
    parts += _of_learner(options, policy, "learner" if learners.num_learners else "driver")
    parts += _of_env_runner(options, policy, "env-runner" if rollout.num_env_runners else "driver")
    if rollout.num_env_runners:
        parts.append(Part("driver", "weights on their way", 4 * policy.parameters, "in Ray's object store"))
    return Memory(tuple(parts), processes)


def _of_learner(options: Options, policy: Shape, process: Process) -> list[Part]:
    models = options.models
    shards = max(1, options.learners.num_learners) if options.learners.distributed == "fsdp" else 1
    weight = _BYTES[models.weights_dtype]
    parts = []
    trained = {"policy": policy}
    if models.critic is not None:
        own = policy if models.critic == "separate" else Shape.of(models.critic)
        trained["critic"] = own.first_layers(models.critic_layers)
    for name, shape in trained.items():
        if models.lora is None:
            size, meaning = 4 * weight * shape.parameters, f"weights, gradients, two moments: 4 x {weight} bytes"
        else:
            size, meaning = weight * shape.parameters, f"weights: {weight} bytes; adapters come on top"
        parts.append(Part(process, name, size // shards, f"{shape.parameters:,} parameters; {meaning}"))
    if options.policy_loss.kl_coef:
        name = str(models.policy_model if models.reference_model == "initial" else models.reference_model)
        shape = policy if name == models.policy_model else Shape.of(name)
        parts.append(
            Part(process, "reference", weight * shape.parameters // shards, f"{shape.parameters:,} parameters")
        )
    tokens = options.compute.micro_batch_tokens
    kept = max(_activations(shape, options) for shape in trained.values())
    parts.append(Part(process, "activations", kept, f"of a micro-batch of {tokens:,} tokens"))
    logits = 2 * 4 * min(tokens * policy.vocabulary, _LARGEST_LOGITS)
    parts.append(Part(process, "logits", logits, "and their gradient"))
    return parts


def _activations(shape: Shape, options: Options) -> int:
    tokens, half = options.compute.micro_batch_tokens, options.models.dtype != "float32"
    if half:
        of_layer = 2 * (15 * shape.hidden + 2 * shape.keys + 4 * shape.mlp)
    else:
        of_layer = 4 * (8 * shape.hidden + 2 * shape.keys + 4 * shape.mlp)
    casts = 2 * (shape.parameters - shape.embedding) if half else 0
    if options.learners.gradient_checkpointing:
        return tokens * (4 * shape.hidden * shape.layers + of_layer) + casts // shape.layers
    # Sharded blocks are gathered in half precision, one after the other; whole ones keep their casts for the backward pass.
    sharded = options.learners.distributed == "fsdp"
    return tokens * of_layer * shape.layers + (casts // shape.layers if sharded else casts)


def _of_env_runner(options: Options, policy: Shape, process: Process) -> list[Part]:
    rollout, size = options.rollout, _BYTES[options.models.dtype]
    tokens = rollout.num_envs_per_env_runner * (rollout.max_prompt_length + rollout.max_response_length)
    of_token = 2 * policy.layers * policy.keys * size
    parts = [Part(process, "weights", size * policy.parameters, f"{size} bytes a parameter")]
    full = f"{of_token:,} bytes a token; full slots hold {tokens:,} tokens: {tokens * of_token / GIB:.2f} GiB"
    if rollout.num_gpus_per_env_runner == 0:
        given = float(rollout.engine.arguments.get("kv_cache_gib", 1))
        parts.append(Part(process, "keys and values", int(given * GIB), f"engine.kv_cache_gib; {full}"))
    else:
        parts.append(Part(process, "keys and values", tokens * of_token, full))
    return parts


def machine_memory() -> int:
    """Returns the memory of this machine, or of the container that we are in, bytes."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as file:
            limit = file.read().strip()
    except OSError:
        return whole
    return min(whole, int(limit)) if limit.isdigit() else whole


def check_memory(memory: Memory, options: Options, available: int) -> None:
    """Refuses a run on the CPUs of this machine alone whose largest process needs more memory than there is.

    Raises:
        OptionError: names the process, what it needs, and what would make it smaller.
    """
    elsewhere = "RAY_ADDRESS" in os.environ
    if elsewhere or options.rollout.num_gpus_per_env_runner or options.learners.num_gpus_per_learner:
        return
    process = max(memory.processes, key=memory.of)
    if memory.of(process) > available:
        raise OptionError(
            f"policy_model={options.models.policy_model!r}: one {process} needs {memory.of(process) / GIB:.1f} GiB, and this "
            f"machine has {available / GIB:.1f} GiB; take a smaller model, fewer critic_layers, lora, or fewer "
            "micro_batch_tokens"
        )
