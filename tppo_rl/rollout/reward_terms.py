"""Rewards by name (`tppo_rl.core.registry.REWARDS`); `environment` is the option's default.

| name | gives |
|---|---|
| `environment` | the environment's rewards, at the ends of its turns |
| `zero_one`, `plus_minus_one` | 1 for a response that the environment calls right; 0 or -1 else |
| `verifier` | 1 where the response gives the row's answer, else 0 (`tppo_rl.envs.verifiers`) |
| `format` | 1 where a pattern or tags are there, else 0 |
| `length` | a penalty for every token beyond a number |
| `calculation` | 1 where a right calculation with numbers of the question is there, else 0 (`tppo_rl.rollout.calculation_reward`) |
| `model` | what a reward model gives (`tppo_rl.rollout.reward_model`) |

They have the contract of all reward functions (`tppo_rl.rollout.rewards`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import regex
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from tppo_rl.core.errors import OptionError
from tppo_rl.core.reward_signature import column
from tppo_rl.envs.verifiers import Verifier, VerifierError, find_verifier

PATTERN_SECONDS = 1.0
"""Longest search for a user's pattern in one response."""


def environment(*, environment_reward: Sequence[float], **columns: Any) -> list[float]:
    """Returns the environment's rewards."""
    return list(environment_reward)


def zero_one(*, correct: Sequence[bool | None], truncated: Sequence[bool], **columns: Any) -> list[float]:
    """Returns 1 for a right response, else 0."""
    return [1.0 if right else 0.0 for right in _known("zero_one", correct, truncated)]


def plus_minus_one(*, correct: Sequence[bool | None], truncated: Sequence[bool], **columns: Any) -> list[float]:
    """Returns 1 for a right response, else -1."""
    return [1.0 if right else -1.0 for right in _known("plus_minus_one", correct, truncated)]


class Term(BaseModel):
    """A registered reward with settings."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    def load(self) -> None:
        """Gets what it needs in the process that calls it; checks alone do not need it."""


class Format(Term):
    """1 for a response that has the format, else 0. Give `pattern` or `tags`.

    With `tags` the response must have each `<tag>…</tag>` once, in this order. `pattern` is a regular expression that is
    searched; the point matches line breaks, too, and `^` and `$` stand for begin and end of the response.
    """

    pattern: str | None = None
    tags: list[str] | None = Field(None, min_length=1)

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, pattern: str | None) -> str | None:
        try:
            regex.compile(pattern or "")
        except regex.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _has_one(self) -> Format:
        if (self.pattern is None) == (self.tags is None):
            raise ValueError("format needs either `pattern` or `tags`; give one of them")
        return self

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Any]:
        """Returns 1 or 0 for each response; a search that takes too long is a failure of that response."""
        return [self._score(text_of(completion)) for completion in completions]

    def _score(self, text: str) -> Any:
        if self.tags is not None:
            return float(_has_tags(text, self.tags))
        assert self.pattern is not None
        try:
            return float(regex.search(self.pattern, text, regex.DOTALL, timeout=PATTERN_SECONDS) is not None)
        except TimeoutError:
            return TimeoutError(f"the pattern {self.pattern!r} took more than {PATTERN_SECONDS:g} s on a response")


class Length(Term):
    """-per_token for every sampled token beyond a number of them, but at least -most."""

    beyond: int = Field(ge=0)
    per_token: float = Field(0.001, gt=0, allow_inf_nan=False)
    most: float = Field(1.0, gt=0, allow_inf_nan=False)

    def __call__(self, *, completion_ids: Sequence[Sequence[int]], **columns: Any) -> list[float]:
        """Returns 0 or a penalty for each response."""
        return [-min(self.most, self.per_token * max(0, len(tokens) - self.beyond)) for tokens in completion_ids]


class AnswerVerifier(Term):
    """1 where the response gives the answer of the row's column, else 0; `verifier` is an option of its own."""

    verifier: Any = "math"
    column: str = Field("answer", min_length=1)
    _verifier: Verifier = PrivateAttr()

    @model_validator(mode="after")
    def _exists(self) -> AnswerVerifier:
        # Frozen models take no private attributes later on.
        object.__setattr__(self, "__pydantic_private__", {"_verifier": find_verifier(self.verifier)})
        return self

    @property
    def needs(self) -> tuple[str, ...]:
        """Columns without which it cannot be called."""
        return (self.column,)

    def __call__(self, *, completions: Sequence[Any], **columns: Any) -> list[Any]:
        """Returns 1 or 0 for each response; a verifier that fails is a failure of that response."""
        # `a.b` is key b of the mapping in column a.
        top, _, inner = self.column.partition(".") if self.column not in columns else (self.column, "", "")
        rows = columns.get(top) or [None] * len(completions)
        answers = [column(row, inner) if inner and isinstance(row, Mapping) else row for row in rows]
        return [self._score(text_of(said), answer) for said, answer in zip(completions, answers, strict=True)]

    def _score(self, response: str, answer: Any) -> Any:
        if answer is None:
            return VerifierError(f"the row has no {self.column}")
        try:
            return self._verifier(response, str(answer))
        except VerifierError as error:
            return error


def text_of(completion: Any) -> str:
    """The text of a completion; of messages, the turns of the model."""
    if isinstance(completion, str):
        return completion
    return "\n".join(str(message["content"]) for message in completion if message["role"] == "assistant")


def _has_tags(text: str, tags: Sequence[str]) -> bool:
    end = 0
    for tag in tags:
        opening, closing = f"<{tag}>", f"</{tag}>"
        if text.count(opening) != 1 or text.count(closing) != 1:
            return False
        start, stop = text.index(opening), text.index(closing)
        if not end <= start < stop:
            return False
        end = stop + len(closing)
    return True


def _known(name: str, correct: Sequence[bool | None], truncated: Sequence[bool]) -> list[bool]:
    """Whether responses are right; a truncated one of unknown correctness counts as wrong."""
    for right, cut in zip(correct, truncated, strict=True):
        if right is None and not cut:
            raise unknown_correctness(f"rewards={name!r}", "set rewards to 'environment'")
    return [bool(right) for right in correct]


def unknown_correctness(key: str, otherwise: str) -> OptionError:
    """The error of an option that needs to know which responses are right."""
    return OptionError(
        f"{key}: the environment ended an episode and did not say whether it was right; let its last step give "
        f"info['correct'], or {otherwise}"
    )
