"""The engine protocol: the few things that the pipeline asks of whatever samples tokens.

An engine holds requests, and each `step()` samples at most a few tokens for each of them. It knows nothing of
environments, windows or episodes. `VLLMEngine` runs a real model; `SimulatedEngine` draws lengths and charges time.

    submit(request) ──▶ step() ──▶ [Output, …]      every sampled token comes out of exactly one step()
                          │
          load_weights ───┴─── cut                  only ever between two steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np

KV_ON_UPDATE = ("recompute", "keep")
"""What becomes of the KV cache of running requests when weights change: computed anew under the new weights
(default), or kept, so that new tokens attend to keys and values of older policies."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are sampled. Log-probs are those of the distribution after temperature."""

    temperature: float = 1.0
    """0 means greedy."""


@dataclass(frozen=True)
class Request:
    """One turn to be generated after `tokens`."""

    request_id: str
    tokens: Sequence[int]
    """Everything so far: prompt, earlier windows, environment text."""
    max_new_tokens: int
    sampling: Sampling
    first_version: int = 0
    """Policy version at which its episode began. Keys and values that requests have left are for those of one version."""


class Output(NamedTuple):
    """What one step sampled for one request. A tuple, for one is made for every token."""

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
    """What the pipeline needs of an engine. Not thread-safe: one caller."""

    version: int
    """Policy version of the weights that the next step samples with."""

    def submit(self, request: Request) -> None:
        """Adds a request; its first token comes out of the next step."""

    def step(self) -> list[Output]:
        """Samples the next token of every running request."""

    def cut(self, request_ids: Sequence[str]) -> None:
        """Drops running requests. Tokens already given out by `step` stay valid; a request may be resubmitted
        with its prefix as tokens."""

    def load_weights(self, weights: Mapping[str, Any], version: int) -> None:
        """Takes new policy weights (transformers names → arrays or CPU tensors), applied before the next step."""

    def score(self, tokens: Sequence[int]) -> np.ndarray:
        """Log-prob of each token but the first given those before it, at temperature 1, float32 [len - 1].
        Used as a probe of the engine's weights. Needs an engine without running requests."""

    def stop(self) -> None:
        """Releases the engine's memory and processes. The engine is not used afterwards."""
