"""The answer of an env-runner to the driver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from tppo_rl.core.begun_episodes import BEGUN_SCHEMA
from tppo_rl.core.spans import Span
from tppo_rl.rollout.responses import Scores
from tppo_rl.rollout.scoring_order import ScoringOrder


@dataclass(frozen=True)
class SampleResult:
    """The result of one `sample()` call, and the env-runner's counts at that moment."""

    fragments: pa.Table
    """Fragments closed since the last call (`FRAGMENT_SCHEMA`)."""
    incarnation: str
    """Name of the actor's state; it changes with every restart and every `abandon`."""
    version: int | None
    """Policy version of the engine; None: the actor was restarted and has no weights yet."""
    num_tokens_sampled: int = 0
    """All tokens that this incarnation sampled."""
    num_open_tokens: int = 0
    """Sampled tokens in windows that are still open."""
    oldest_open_version: int | None = None
    begun: pa.Table = field(default_factory=BEGUN_SCHEMA.empty_table)
    """All episodes that have begun and not ended, in the form of `BegunEpisode.told` (`BEGUN_SCHEMA`)."""
    num_waiting_tickets: int = 0
    slot_steps: int = 0
    """Slots times engine steps of this call."""
    productive_slot_steps: int = 0
    """Slot-steps of this call that produced a token."""
    refills: int = 0
    """Episodes that began in this call."""
    scores: Scores = field(default_factory=Scores)
    """What scoring gave in this call; it says which of the fragments are not trained."""
    seconds: float = 0.0
    """Duration of this call."""
    idle_seconds: float = 0.0
    """Time since the last call in which the env-runner had no request, before and after new weights."""
    weight_seconds: float = 0.0
    """Time since the last call in which it loaded weights."""
    spans: tuple[Span, ...] = ()
    """What the env-runner and its scoring workers did since the last call."""
    scoring_order: ScoringOrder = field(default_factory=ScoringOrder)
    """When the results of scoring workers were taken since the last call, evaluations between them included."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """RLlib's env-runner metrics."""
    error: BaseException | None = None
    """Error of the call; the driver raises it, or replaces the env-runner."""
    needs_new_process: bool = False
    """Whether the error is that the engine has died, and a new env-runner can take this one's place."""
