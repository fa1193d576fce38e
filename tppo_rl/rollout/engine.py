"""The engine protocol: the few methods that the pipeline needs of anything that samples tokens.

An engine holds requests, and each `step()` samples at most a few tokens for each of them. It does not know
environments, windows or episodes. `VLLMEngine` runs a real model; `SimulatedEngine` draws lengths and charges time.

    submit(request) ──▶ step() ──▶ [Output, …]      every sampled token comes out of exactly one step()
                          │
          load_weights ───┴─── cut                  only ever between two steps
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.core.registry import ENGINES

KV_ON_UPDATE = ("recompute", "keep")
"""Handling of running requests' KV cache when weights change: it is computed anew by the new weights (default), or kept,
so that new tokens attend to keys and values of older policies."""


@dataclass(frozen=True)
class Sampling:
    """Sampling of tokens. Log-probs are those of the distribution after temperature."""

    temperature: float = 1.0
    """0 means greedy."""


@dataclass(frozen=True)
class Request:
    """One turn to generate after `tokens`."""

    request_id: str
    tokens: Sequence[int]
    """Everything so far: prompt, earlier windows, environment text."""
    max_new_tokens: int
    sampling: Sampling
    first_version: int = 0
    """Policy version at which its episode began. Cached keys and values are shared among requests of one version alone."""


class Output(NamedTuple):
    """Tokens that one step sampled for one request. It is a tuple, because one is made for every token."""

    request_id: str
    tokens: Sequence[int]
    log_probs: Sequence[float]
    """Behavior log-prob of each token, nats, temperature applied."""
    version: int
    """Policy version whose weights sampled the tokens."""
    turn_ended: bool
    """Whether the last token is an end-of-turn token (False where only `max_new_tokens` ended the request)."""
    request_ended: bool
    """Whether the engine has dropped the request: end of turn, or `max_new_tokens` reached."""


class Engine(Protocol):
    """An engine, as far as the pipeline uses it. It has one caller and need not be thread-safe."""

    version: int
    """Policy version of the weights that the next step samples with."""

    def submit(self, request: Request) -> None:
        """Adds a request; its first token comes out of the next step."""

    def step(self) -> list[Output]:
        """Samples the next token of every running request."""

    def cut(self, request_ids: Sequence[str]) -> None:
        """Drops running requests. Tokens that `step` has given out stay valid; a request may be submitted again
        with its prefix as tokens."""

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Takes new policy weights (transformers names → arrays or CPU tensors), applied before the next step."""

    def reseed(self, seed: int) -> None:
        """Begins the noise of sampling anew: what is sampled next follows from the weights, the requests, their order and the
        seed."""

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        """Returns the log-prob of each token but the first, given those before it, at temperature 1, float32 [len - 1].
        It is a probe of the engine's weights, and needs an engine without running requests."""

    def stop(self) -> None:
        """Releases the engine's memory and processes. The engine is not used afterwards."""


def build_engine(options: Options, end_of_turn: Sequence[int], *, seed: int) -> Engine:
    """Builds the engine of a run's policy.

    Args:
        options: Of the run.
        end_of_turn: Token ids that end a turn.
        seed: Of the engine's sampler.

    Raises:
        OptionError: the engine cannot work with the options.
    """
    rollout, head_dtype = options.rollout, options.models.head_dtype
    build: Callable[..., Engine] = ENGINES.find(rollout.engine.type)
    return build(
        resolve_model(str(options.models.policy_model)),
        dtype=options.models.dtype,
        max_model_len=rollout.max_prompt_length + rollout.max_response_length,
        max_num_seqs=rollout.num_envs_per_env_runner,
        end_of_turn=end_of_turn,
        kv_on_update=options.pipeline.kv_on_update,
        seed=seed,
        num_threads=max(1, int(rollout.num_cpus_per_env_runner)),
        device=rollout.engine.device or ("cuda" if rollout.num_gpus_per_env_runner else "cpu"),
        engine_args=rollout.engine.arguments,
        # Engines of users know the other arguments.
        **({} if head_dtype is None else {"head_dtype": head_dtype}),
        **({"weight_transport": "broadcast"} if options.pipeline.weight_transport == "broadcast" else {}),
    )
