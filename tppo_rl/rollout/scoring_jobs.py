"""What goes to scoring workers and comes back: plain data that both sides can pickle.

    ResetJob ──▶ PromptText | Failure        StepJob ──▶ Step | Failure        ScoreJob ──▶ Scored

Nothing of the user's is pickled but data: what an environment's `reset` gives as info, and what the options hold. Environments and
reward functions are found in the worker by their places.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.rollout.responses import Response, Scores, Verdict


@dataclass(frozen=True)
class Setup:
    """What a worker is made of."""

    options: Options
    splits: Sequence[str]
    """Splits of the environment that are built at once, so that an error shows at the start."""
    registered: tuple[str, str] | None = None
    """Id and place of an environment that the parent has registered."""


@dataclass(frozen=True)
class Problem:
    """A problem of the environment, for one episode."""

    episode: int
    """Number that no other episode of the pool has."""
    split: str
    seed: int


@dataclass(frozen=True)
class ResetJob:
    """Begin an episode."""

    problem: Problem


@dataclass(frozen=True)
class PromptText:
    """What `reset` gave."""

    text: str
    info: Mapping[str, Any]
    wrong_reward: float
    """What the environment gives a wrong answer."""


@dataclass(frozen=True)
class StepJob:
    """Give the environment a turn of the model. A worker that does not have the episode makes it from seed and turns."""

    problem: Problem
    prompt: str
    """What `reset` must give again."""
    turns: Sequence[str]
    """Earlier turns of the model."""
    said: str
    attempts: int
    """How often the step is taken while it fails."""


@dataclass(frozen=True)
class ScoreJob:
    """Let the parts of the reward score responses."""

    responses: Sequence[Response]
    version: int


@dataclass(frozen=True)
class Scored:
    """What the parts gave, a verdict for each response."""

    verdicts: Sequence[Verdict]
    scores: Scores = field(default_factory=Scores)


Job = ResetJob | StepJob | ScoreJob


@dataclass(frozen=True)
class Message:
    """What the parent sends: a job, and the episodes that are over."""

    job: Job
    over: Sequence[int] = ()


@dataclass(frozen=True)
class Ready:
    """A worker has built everything."""


@dataclass(frozen=True)
class Doing:
    """A worker calls this part of the reward now, so that a failure has its name."""

    name: str


@dataclass(frozen=True)
class Raised:
    """An error that ends the run."""

    error: Exception
