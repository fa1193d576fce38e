"""The exchange of environment and model in one episode, and the environment's faults in it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tppo_rl.core.begun_episodes import BegunEpisode
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.reward_parts import ENVIRONMENT
from tppo_rl.rollout.responses import Failure

SCORER_ERROR = "scorer_error"
"""Key of a step's info by which an environment says that its scorer failed; its reward then means nothing."""


class Step(NamedTuple):
    """What the environment answered to a turn."""

    text: str
    reward: float
    ended: bool
    terminated: bool
    correct: bool | None


@dataclass
class Dialog:
    """The exchange of environment and model so far."""

    env: Any
    prompt: str
    info: Mapping[str, Any]
    """Info that the environment's reset returned with the prompt."""
    turns: list[str] = field(default_factory=list)
    """Turns of the model."""
    observations: list[str] = field(default_factory=list)
    """Turns of the environment between them."""
    turn_rewards: list[float] = field(default_factory=list)
    """What the environment gave for each turn."""
    wrong_reward: float = 0.0
    """What the environment gives a wrong answer."""

    @property
    def reward(self) -> float:
        """Sum of the environment's rewards."""
        return sum(self.turn_rewards, 0.0)

    def begun(self, window: Fragment) -> BegunEpisode:
        """Returns the episode as far as the environment has answered, given its open window."""
        answered = len(self.observations)
        return BegunEpisode(
            window, tuple(self.turns[:answered]), tuple(self.observations), tuple(self.turn_rewards[:answered])
        )

    def say(self, said: str, *, attempts: int = 1) -> Step | Failure:
        """Gives the environment a turn of the model, see `take_step`."""
        self.turns.append(said)
        answer = take_step(self.env, said, attempts=attempts)
        self.add(answer)
        return answer

    def add(self, answer: Step | Failure) -> None:
        """Adds the reward of an answer to the last turn."""
        if isinstance(answer, Step):
            self.turn_rewards.append(answer.reward)

    def give_back(self, failure: Failure | None) -> list[Any]:
        """Returns the environment where it can serve another episode, else closes it."""
        if failure is None or failure.kind == SCORER_ERROR:
            return [self.env]
        # What an environment is worth after an error, nobody knows.
        with suppress(Exception):
            self.env.close()
        return []


def take_step(env: Any, said: str, *, attempts: int = 1) -> Step | Failure:
    """Gives an environment a turn of the model.

    Whatever it raises, and whatever it returns against its contract, is a failure of this episode alone.

    Args:
        env: The environment.
        said: The turn's text.
        attempts: How often the step is taken while it fails.
    """
    answer = _step(env, said)
    for _ in range(attempts - 1):
        if isinstance(answer, Failure):
            answer = _step(env, said)
    return answer


def wrong_reward_of(env: Any) -> float:
    """What an environment gives a wrong answer; 0 where it does not say."""
    reward = getattr(getattr(env, "unwrapped", env), "wrong_reward", 0.0)
    return float(reward) if isinstance(reward, int | float) else 0.0


def _step(env: Any, said: str) -> Step | Failure:
    try:
        text, reward, terminated, truncated, info = env.step(said)
        if SCORER_ERROR in info:
            return Failure(ENVIRONMENT, SCORER_ERROR, str(info[SCORER_ERROR])[:500])
        correct = info.get("correct")
        step = Step(
            text,
            float(reward),
            bool(terminated or truncated),
            bool(terminated),
            None if correct is None else bool(correct),
        )
    except (Exception, SystemExit) as error:
        return Failure.of(ENVIRONMENT, error)
    if not math.isfinite(step.reward):
        return Failure(ENVIRONMENT, "not_finite", f"the reward must be finite, got {reward!r}")
    if not step.ended and not isinstance(text, str):
        return Failure(ENVIRONMENT, "no_text", f"the observation must be a text, got {type(text).__name__}")
    return step
