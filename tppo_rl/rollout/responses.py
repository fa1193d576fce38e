"""Responses that have ended, and what scoring gave for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

TIMEOUT, MEMORY, DIED = "timeout", "memory", "died"
"""Kinds of failures for which a worker process is killed, or after which it is gone."""
KILLED = frozenset({TIMEOUT, MEMORY, DIED})
REWARD_FAILED = "reward_failed"
"""Ledger reason of tokens whose response could not be scored."""
NOT_REBUILT = "not_rebuilt"
"""Ledger reason of open tokens whose episode could not go on after a restart: its environment came out another one. It is the
kind of that failure, too."""
TRUNCATED = "truncated"
"""Ledger reason of tokens that `truncated_responses: mask` left out."""


@dataclass(frozen=True)
class Response:
    """A response that has ended, as rewards see it."""

    prompt: str
    completion: str
    """Turns of the model, joined by a line break."""
    completion_ids: Sequence[int]
    length: int
    """Tokens after the prompt, environment text included."""
    environment_reward: float
    correct: bool | None
    truncated: bool
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of reward functions, from the environment's `reset`."""
    turns: Sequence[str] = ()
    """Turns of the model; empty: `completion` is the only one."""
    observations: Sequence[str] = ()
    """What the environment answered between the turns."""

    @property
    def prompt_messages(self) -> list[Any] | None:
        """The whole prompt as messages; None where it is a text.

        It is a conversation where the environment's info says so (`conversational`), or else where `messages` stand before it.
        """
        earlier = list(self.columns.get("messages") or ())
        if not self.columns.get("conversational", bool(earlier)):
            return None
        return [*earlier, {"role": "user", "content": self.prompt}]

    @property
    def completion_messages(self) -> list[dict[str, str]]:
        """The response as messages: turns of the model, and the environment's between them."""
        messages = []
        for turn, answer in zip_longest(self.turns or (self.completion,), self.observations):
            messages.append({"role": "assistant", "content": turn})
            if answer is not None:
                messages.append({"role": "user", "content": answer})
        return messages


@dataclass(frozen=True)
class Failure:
    """A response that something could not score; this is not the same as a low reward."""

    name: str
    """`environment`, or the name of a part of the reward."""
    kind: str
    """`exception`, `timeout`, `memory`, `died`, `not_finite`, `no_number`, `wrong_length`, `nothing_applies` and others."""
    message: str

    @classmethod
    def of(cls, name: str, error: BaseException) -> Failure:
        """The failure of a call that raised."""
        kind = TIMEOUT if isinstance(error, TimeoutError) else MEMORY if isinstance(error, MemoryError) else "exception"
        try:
            message = f"{type(error).__name__}: {error}"
        except Exception:  # an error of the user may not even have a text
            message = type(error).__name__
        return cls(name, kind, message[:500])


@dataclass(frozen=True)
class Verdict:
    """What the parts of the reward say about one response."""

    reward: float = 0.0
    """Weighted sum of the parts that stand at the end of the response."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """What each part gave, unweighted; parts that do not apply are absent."""
    failures: tuple[Failure, ...] = ()


@dataclass
class Scores:
    """What scoring gave for some responses."""

    sums: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Sum and number of values by name: of the parts, and of what they log beside their rewards."""
    failures: list[Failure] = field(default_factory=list)
    failed_responses: int = 0
    """Responses with a failure, whatever became of them."""
    left_out: dict[int, str] = field(default_factory=dict)
    """Ledger reasons of finished episodes whose last window is not trained, by episode."""
    failed_prompts: dict[int, int] = field(default_factory=dict)
    """Prompt indices of episodes that never began, because the environment could not be reset, by episode."""

    def add_values(self, name: str, values: Iterable[float]) -> None:
        """Adds values under a name."""
        values = list(values)
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = total + sum(values), count + len(values)

    def add(self, other: Scores) -> None:
        """Adds the scores of other responses."""
        for name, (total, count) in other.sums.items():
            own_total, own_count = self.sums.get(name, (0.0, 0))
            self.sums[name] = own_total + total, own_count + count
        self.failures += other.failures
        self.failed_responses += other.failed_responses
        self.left_out |= other.left_out
        self.failed_prompts |= other.failed_prompts
