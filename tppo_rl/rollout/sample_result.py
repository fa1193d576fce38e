"""What an env-runner hands to the driver with every answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class SampleResult:
    """What one `sample()` call hands to the algorithm, and what the env-runner says of itself at that moment."""

    fragments: pa.Table
    """Fragments closed since the last call (`FRAGMENT_SCHEMA`)."""
    incarnation: str
    """Changes when the actor was restarted."""
    version: int | None
    """Policy version of the engine; None: restarted, and it has no weights yet."""
    num_tokens_sampled: int = 0
    """All tokens that this incarnation sampled."""
    num_open_tokens: int = 0
    """Of those, the ones in windows that are still open."""
    oldest_open_version: int | None = None
    num_waiting_tickets: int = 0
    slot_steps: int = 0
    """Slots times engine steps of this call."""
    productive_slot_steps: int = 0
    """Of those, the ones that produced a token."""
    refills: int = 0
    """Episodes that began in this call."""
    scorer_errors: tuple[str, ...] = ()
    """What the environment's scorers raised in this call; the responses got its score for that."""
    seconds: float = 0.0
    """Duration of this call."""
    idle_seconds: float = 0.0
    """Time since the last call in which nothing was asked of the env-runner, before and after new weights."""
    weight_seconds: float = 0.0
    """Time spent since the last call on loading weights."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """RLlib's env-runner metrics."""
    error: BaseException | None = None
    """What went wrong; the algorithm raises it."""
