"""Rewards of training responses: a reward function, and a penalty for length.

A reward function has TRL's contract: it is called with keyword arguments, each a list with one entry for each response, and
returns a list of numbers.

    def reward(*, completions: list[str], **columns: list) -> list[float]: ...

| argument | an entry is |
|---|---|
| `prompts`, `completions` | text of the prompt; text of the response, turns joined by a line break |
| `completion_ids` | list of sampled token ids |
| `environment_reward` | sum of the environment's rewards for its turns |
| `correct` | whether the environment calls the response right; None if it does not say |
| `truncated` | whether the cap ended the response |
| any key of the `info` that the environment's `reset` returned | its value |

The functions of this file are registered by name (`tppo_rl.core.registry.REWARDS`). Name a function of your own by its
place, `rewards: my_module:my_reward`. With `environment`, rewards stand where the environment gives them, at the ends of
turns. All other rewards stand at the end of the response.

Overlong shaping (DAPO, arXiv 2503.14476, eq. 13), for a response of n tokens under a cap L with a buffer of b tokens:

    0                  n <= L - b
    (L - b - n) / b    L - b < n <= L
    -1                 n > L

Evaluation scores responses without any of this.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.core.registry import REWARDS

ENVIRONMENT = "environment"

RewardFunction = Callable[..., Sequence[float]]
"""A reward function by the contract at the head of this file."""


def environment(*, environment_reward: Sequence[float], **columns: Any) -> list[float]:
    """Returns the environment's rewards."""
    return list(environment_reward)


def zero_one(*, correct: Sequence[bool | None], truncated: Sequence[bool], **columns: Any) -> list[float]:
    """Returns 1 for a right response, else 0."""
    return [1.0 if right else 0.0 for right in _known("zero_one", correct, truncated)]


def plus_minus_one(*, correct: Sequence[bool | None], truncated: Sequence[bool], **columns: Any) -> list[float]:
    """Returns 1 for a right response, else -1."""
    return [1.0 if right else -1.0 for right in _known("plus_minus_one", correct, truncated)]


def _known(name: str, correct: Sequence[bool | None], truncated: Sequence[bool]) -> list[bool]:
    """Whether responses are right; a truncated one of unknown correctness counts as wrong."""
    for right, cut in zip(correct, truncated, strict=True):
        if right is None and not cut:
            raise _unknown(f"rewards={name!r}", "set rewards to 'environment'")
    return [bool(right) for right in correct]


def _unknown(key: str, otherwise: str) -> ValueError:
    return ValueError(
        f"{key}: the environment ended an episode and did not say whether it was right; let its last step give "
        f"info['correct'], or {otherwise}"
    )


def overlong_penalty(length: int, *, cap: int, buffer: int) -> float:
    """Returns the penalty of the module's equation, between -1 and 0.

    Args:
        length: n, tokens of the response.
        cap: L, tokens.
        buffer: b, tokens, at least 1.
    """
    return max(-1.0, min(0.0, (cap - buffer - length) / buffer))


@dataclass(frozen=True)
class Response:
    """A response that has ended, as a reward function sees it."""

    prompt: str
    completion: str
    completion_ids: Sequence[int]
    length: int
    """Tokens after the prompt, environment text included."""
    environment_reward: float
    correct: bool | None
    truncated: bool
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of reward functions, from the environment's `reset`."""


class Rewards:
    """Rewards of the training split.

    Args:
        function: The reward function.
        name: Its name in the option.
        max_response_length: Cap of the responses, tokens.
        overlong_buffer: Number of last tokens under the cap over which the penalty grows; 0: no penalty.
        imitates_right: Whether right responses are imitated, so that every environment must say which are right.
    """

    def __init__(
        self,
        function: RewardFunction = environment,
        name: str = ENVIRONMENT,
        *,
        max_response_length: int = 0,
        overlong_buffer: int = 0,
        imitates_right: bool = False,
    ) -> None:
        self._function = function
        self._name = name
        self._per_turn = name == ENVIRONMENT
        self._cap = max_response_length
        self._overlong_buffer = overlong_buffer
        self._imitates_right = imitates_right

    @classmethod
    def of(cls, options: Options) -> Rewards:
        """Returns the rewards that the options ask for.

        Raises:
            OptionError: no such reward function, or arguments that it does not take.
        """
        cap, fraction = options.rollout.max_response_length, options.rewards.overlong_fraction
        buffer = 0 if fraction is None else max(1, round(fraction * cap))
        part = options.rewards.rewards
        return cls(
            REWARDS.resolve(part),
            part.name,
            max_response_length=cap,
            overlong_buffer=buffer,
            imitates_right=options.policy_loss.positive_lm_coef > 0,
        )

    def of_turn(self, reward: float) -> float:
        """Returns the reward of a turn, given the environment's reward."""
        return reward if self._per_turn else 0.0

    def of_episode(self, response: Response) -> float:
        """Returns the reward that the end of the episode adds to that of its last turn.

        Raises:
            ValueError: the reward function does not return one finite number, or right responses are imitated and the
                environment does not say which are right.
        """
        if self._imitates_right and response.correct is None and not response.truncated:
            raise _unknown("positive_lm_coef", "set positive_lm_coef to 0")
        penalty = 0.0
        if self._overlong_buffer:
            penalty = overlong_penalty(response.length, cap=self._cap, buffer=self._overlong_buffer)
        return penalty if self._per_turn else self._score(response) + penalty

    def _score(self, response: Response) -> float:
        columns = {
            **response.columns,
            "prompts": response.prompt,
            "completions": response.completion,
            "completion_ids": list(response.completion_ids),
            "environment_reward": response.environment_reward,
            "correct": response.correct,
            "truncated": response.truncated,
        }
        scores = self._function(**{name: [value] for name, value in columns.items()})
        score = scores[0] if isinstance(scores, Sequence) and len(scores) == 1 else None
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            raise ValueError(
                f"rewards={self._name!r}: must return one finite number for each response, in a list; got {scores!r} for one"
            )
        return float(score)
