"""What learner and engine take of a GPU, and the engine's share of it, which vLLM calls `gpu_memory_utilization`.

    held        weights, gradients, moments, reference model of a learner
    peak        held, and the activations and the backward pass of a micro-batch
    process     what CUDA and its libraries keep for a process: 1 GiB
    a           1.1: the caching allocator keeps holes between its blocks

    placement              the engine's share of the card                    and while the learner trains
    apart                  0.90                                              a * peak + process <= card
    colocated, awake       (card - process - a * peak) / card                both are there at once
    colocated, sleeping    (card - process - a * held) / card                a * peak + process + asleep <= card

rounded down to 0.01, and 0.90 at most. `asleep` is what an engine keeps while it sleeps: its process and CUDA graphs, 2 GiB.
The share holds all that an engine takes. It is large enough if there is room for

    weights + keys and values of one response with its prompt + process + graphs (1 GiB) + a step:
    tokens of a step * (6h + 2i) numbers, and 3 copies of the logits of all slots in float32

for hidden size h and MLP width i. `process`, `a`, `asleep` and a step's share are estimates; none was measured on a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tppo_rl.config.options import Options
from tppo_rl.config.sleep_checks import sleeps
from tppo_rl.plan.learner_memory import BYTES
from tppo_rl.plan.memory import GIB, Part, memory_of
from tppo_rl.plan.model_shape import Shape

LARGEST_UTILIZATION = 0.9
_PROCESS = GIB
_GRAPHS = GIB
_ALLOCATOR = 1.1
_STEP_TOKENS = 8192
"""Default of vLLM's `max_num_batched_tokens` here (`tppo_rl.rollout.vllm_engine`)."""
_HELD = ("policy", "critic", "reference")
_PASSING = ("activations", "backward pass")


@dataclass(frozen=True)
class CardNeeds:
    """What one learner and one engine take of a GPU, bytes."""

    held: int
    """What a learner holds all the time."""
    peak: int
    """The most that a learner takes, what it holds included."""
    engine_least: int
    """The least share with which an engine starts and answers one prompt."""
    engine_fixed: int
    """What an engine takes beside keys and values."""
    kv_bytes_per_token: int
    """Keys and values of a token, on one GPU of the engine."""
    slot_tokens: int
    """Tokens of all slots of an engine when they are full."""

    def share_for_engine(self, card: int, *, colocated: bool, asleep: bool) -> float:
        """The largest `gpu_memory_utilization` beside the learner; 0 or less where the learner alone is too large.

        Args:
            card: Bytes of the GPU.
            colocated: Whether learner and engine are on the same GPU.
            asleep: Whether the engine sleeps while the learner trains.
        """
        while_training = _PROCESS + _ALLOCATOR * self.peak
        if colocated and asleep:
            while_training += _PROCESS + _GRAPHS
        if while_training > card:
            return math.floor(100 * (card - while_training) / card) / 100
        if not colocated:
            return LARGEST_UTILIZATION
        beside = _PROCESS + _ALLOCATOR * (self.held if asleep else self.peak)
        # The small number keeps 0.57 * 100 from being 56.99.
        return min(LARGEST_UTILIZATION, math.floor(100 * (card - beside) / card + 1e-9) / 100)

    def kv_tokens(self, card: int, utilization: float) -> int:
        """Tokens whose keys and values an engine holds at a time.

        Args:
            card: Bytes of the GPU.
            utilization: The engine's share of it.
        """
        return max(0, int((utilization * card - self.engine_fixed) // self.kv_bytes_per_token))


def card_needs(options: Options, shape_of: Callable[[str], Shape] = Shape.of) -> CardNeeds:
    """Returns what learner and engine take of a GPU with these options.

    Args:
        options: Of the run; engine and learner have processes of their own.
        shape_of: As for `memory_of`.
    """
    memory = memory_of(options, shape_of)
    shape, rollout = shape_of(str(options.models.policy_model)), options.rollout
    held = _sum(memory.parts, _HELD)
    parallel = int(rollout.engine.arguments.get("tensor_parallel_size") or 1)
    number = BYTES[options.models.dtype]
    weights = number * shape.parameters // parallel
    of_token = -(-2 * shape.layers * shape.keys * number // parallel)
    slots, length = rollout.num_envs_per_env_runner, rollout.max_prompt_length + rollout.max_response_length
    tokens = int(rollout.engine.arguments.get("max_num_batched_tokens") or max(_STEP_TOKENS, length))
    step = tokens * (6 * shape.hidden + 2 * shape.mlp) * number + 3 * 4 * slots * shape.vocabulary
    fixed = weights + step + _PROCESS + _GRAPHS
    return CardNeeds(
        held=held,
        peak=held + _sum(memory.parts, _PASSING),
        engine_least=fixed + length * of_token,
        engine_fixed=fixed,
        kv_bytes_per_token=of_token,
        slot_tokens=slots * length,
    )


def engine_sleeps(options: Options) -> bool:
    """Whether the engine gives its memory to the learner while that trains."""
    return options.placement.placement == "colocated" and sleeps(options)


def _sum(parts: tuple[Part, ...], names: tuple[str, ...]) -> int:
    return sum(part.size for part in parts if part.process != "env-runner" and part.name in names)
