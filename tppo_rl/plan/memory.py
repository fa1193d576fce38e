"""Memory of a run, process by process, from the shapes of its models and its options, before anything is started.

Weights, gradients and moments are exact; what a learner's update adds is derived in `tppo_rl.plan.learner_memory`. Resident memory
is a little more: malloc does not fill all the holes that it keeps (`tppo-rl bench memory --plan --kept-blocks`).
Keys and values of one token take 2 * layers * k numbers of the engine's dtype.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.plan.learner_memory import BYTES, learner_pass
from tppo_rl.plan.model_shape import Shape

GIB = 2**30
_PROCESS = {"driver": 0.6 * GIB, "learner": 0.68 * GIB, "env-runner": 0.8 * GIB}
"""Python processes that have imported torch, transformers and Ray; an env-runner vLLM, too. Measured."""
CHECKPOINT = "checkpoint"
"""Name of the part of `with_checkpoint`."""

Process = Literal["driver", "learner", "env-runner"]
_OF_POLICY = "the policy's weights"


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


def memory_of(options: Options, shape_of: Callable[[str], Shape] = Shape.of) -> Memory:
    """Returns the memory that a run with these options needs.

    Args:
        options: Of the run.
        shape_of: Reads the shape of a model; whoever asks for several options at a time may keep it.
    """
    policy = shape_of(str(options.models.policy_model))
    learners, rollout = options.learners, options.rollout
    numbers: dict[Process, int] = {
        "driver": 1,
        "learner": learners.num_learners,
        "env-runner": rollout.num_env_runners,
    }
    processes = {process: number for process, number in numbers.items() if number}
    # The driver has the libraries of what it does itself.
    own = "env-runner" if not rollout.num_env_runners else "learner" if not learners.num_learners else "driver"
    bases = _PROCESS | {"driver": _PROCESS[own]}
    parts = [Part(process, "process", int(bases[process]), "Python with its libraries") for process in processes]
    parts += _of_learner(options, policy, shape_of, "learner" if learners.num_learners else "driver")
    parts += _of_env_runner(options, policy, "env-runner" if rollout.num_env_runners else "driver")
    if rollout.num_env_runners:
        parts.append(Part("driver", "weights on their way", 4 * policy.parameters, "in Ray's object store"))
    return Memory(tuple(parts), processes)


def with_checkpoint(memory: Memory, options: Options, shape_of: Callable[[str], Shape] = Shape.of) -> Memory:
    """Returns the memory of a run that trains on while its checkpoints are written: with a copy of weights and moments.

    Sharded learners have the copy of their slices. Else the driver has the whole, in float32, from learners of other processes in
    Ray's object store.
    """
    learners = options.learners
    sharded = learners.distributed == "fsdp"
    number = BYTES[options.models.weights_dtype] if sharded else 4
    size = 0
    for name, shape in _trained(options, shape_of).items():
        adapters = _adapters(options, name, shape)
        size += 3 * number * shape.parameters if adapters is None else 3 * 4 * adapters
    process: Process = "learner" if sharded else "driver"
    meaning = "a copy of weights and moments while its files are written (checkpoint_config.in_background)"
    part = Part(process, CHECKPOINT, size // (learners.num_learners if sharded else 1), meaning)
    return replace(memory, parts=(*memory.parts, part))


def host_memory(memory: Memory, options: Options) -> int:
    """Bytes of all processes without what is on GPUs."""
    on_gpus = set()
    if options.learners.num_gpus_per_learner:
        on_gpus |= {"policy", "critic", "reference", "activations", "backward pass"}
    if options.rollout.num_gpus_per_env_runner:
        on_gpus |= {"weights", "keys and values"}
    return sum(part.size * memory.processes[part.process] for part in memory.parts if part.name not in on_gpus)


def _trained(options: Options, shape_of: Callable[[str], Shape]) -> dict[str, Shape]:
    models = options.models
    policy = shape_of(str(models.policy_model))
    if models.critic_model is None:
        return {"policy": policy}
    own = policy if models.critic_model == models.policy_model else shape_of(models.critic_model)
    return {"policy": policy, "critic": own.first_layers(models.critic_layers)}


def _adapters(options: Options, name: str, shape: Shape) -> int | None:
    """Number of weights of a model's adapters; None: it has none."""
    lora = options.models.lora if name == "policy" else options.models.critic_adapters
    return None if lora is None else shape.adapters(lora.rank, lora.target_modules)


def _of_learner(options: Options, policy: Shape, shape_of: Callable[[str], Shape], process: Process) -> list[Part]:
    models = options.models
    shards = max(1, options.learners.num_learners) if options.learners.distributed == "fsdp" else 1
    weight = BYTES[models.weights_dtype]
    parts = []
    trained = _trained(options, shape_of)
    shared = models.on_policy_weights(options)
    for name, shape in trained.items():
        adapters = _adapters(options, name, shape)
        own = 0 if name in shared else weight
        if adapters is None:
            size, meaning = 4 * weight * shape.parameters, f"weights, gradients, two moments: 4 x {weight} bytes"
        else:
            size = own * shape.parameters + 16 * adapters
            weights = f"weights: {weight} bytes" if own else _OF_POLICY
            meaning = f"{weights}; {adapters:,} of adapters: 4 x 4 bytes"
        parts.append(Part(process, name, size // shards, f"{shape.parameters:,} parameters; {meaning}"))
    if options.policy_loss.kl_coef:
        shape = policy if models.reference == models.policy_model else shape_of(str(models.reference))
        size = 0 if "reference" in shared else weight * shape.parameters // shards
        meaning = f"{shape.parameters:,} parameters" + (f"; {_OF_POLICY}" if "reference" in shared else "")
        parts.append(Part(process, "reference", size, meaning))
    if options.compute.context_cache_tokens:
        of_token = sum(2 * shape.layers * shape.keys * weight for shape in trained.values())
        size = options.compute.context_cache_tokens * of_token
        parts.append(Part(process, "contexts", size, f"{of_token:,} bytes a token of context_cache_tokens"))
    passes = [learner_pass(shape, options, has_logits=name == "policy") for name, shape in trained.items()]
    largest = max(passes, key=lambda one: one.peak)
    tokens = options.compute.micro_batch_tokens
    kept = min(largest.kept, largest.peak)
    parts.append(Part(process, "activations", kept, f"kept of a micro-batch of {tokens:,} tokens"))
    parts.append(Part(process, "backward pass", largest.peak - kept, "logits and gradients on their way"))
    return parts


def _of_env_runner(options: Options, policy: Shape, process: Process) -> list[Part]:
    rollout, size = options.rollout, BYTES[options.models.dtype]
    tokens = rollout.num_envs_per_env_runner * (rollout.max_prompt_length + rollout.max_response_length)
    of_token = 2 * policy.layers * policy.keys * size
    parts = [Part(process, "weights", size * policy.parameters, f"{size} bytes a parameter")]
    full = f"{of_token:,} bytes a token; full slots hold {tokens:,} tokens: {tokens * of_token / GIB:.2f} GiB"
    if rollout.num_gpus_per_env_runner == 0:
        given = _gib(rollout.engine.arguments.get("kv_cache_gib", 1))
        parts.append(Part(process, "keys and values", int(given * GIB), f"engine.kv_cache_gib; {full}"))
    else:
        parts.append(Part(process, "keys and values", tokens * of_token, full))
    return parts


def _gib(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise OptionError(f"engine.kv_cache_gib={value!r}: must be a number of GiB above 0")
    return float(value)


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
        copied = any(part.process == process and part.name == CHECKPOINT for part in memory.parts)
        more = "checkpoint_config.in_background=false, " if copied else ""
        raise OptionError(
            f"policy_model={options.models.policy_model!r}: one {process} needs {memory.of(process) / GIB:.1f} GiB, and this "
            f"machine has {available / GIB:.1f} GiB; take a smaller model, fewer critic_layers, lora, {more}or fewer "
            "micro_batch_tokens"
        )
