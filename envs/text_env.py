"""The contract of every environment: an episode is a dialogue, a turn of the model is one `step`.

Two promises hold for all of them, and this module keeps both so that no environment can forget one:

- A problem is a pure function of (seed, split, configuration): ``reset(seed=k)`` always gives problem k.
- The splits are disjoint by prompt. A keyed hash of the prompt says which split it belongs to, and drawing
  repeats until the prompt belongs to the split asked for, so that no held-out prompt is ever trained on,
  however many problems are drawn.
"""

import hashlib
import math
import string
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import gymnasium
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.spaces import Text

Split = Literal["train", "heldout"]
SPLITS: tuple[Split, ...] = ("train", "heldout")

HELDOUT_FRACTION = 0.1
"""Share of all prompts that belongs to the held-out split (any ``split_seed``)."""

MAX_CHARACTERS = 65_536
"""Longest text of the spaces, in characters."""

MAX_DRAWS = 2_000
"""Draws after which a split counts as empty; by probability alone this happens with probability 0.9^2000."""

_PROBLEM_STREAM = 0x7465_7874
_SAMPLED_CHARACTERS = string.ascii_letters + string.digits + string.punctuation + " \n"


def split_of(prompt: str, split_seed: int, fraction: float = HELDOUT_FRACTION) -> Split:
    """The split that ``prompt`` belongs to, a ``fraction`` of all prompts being held out: the same on every machine and in
    every process.
    """
    key = split_seed.to_bytes(8, "little")
    digest = hashlib.blake2b(prompt.encode(), key=key, digest_size=8).digest()
    return "heldout" if int.from_bytes(digest, "little") < fraction * 2**64 else "train"


def require(condition: bool, key: str, value: object, remedy: str) -> None:
    """Raise the ValueError of a bad option (its key, its value, and what to write instead) unless
    ``condition`` holds.
    """
    if not condition:
        raise ValueError(f"{key}={value!r}: {remedy}")


def is_integer(value: object) -> bool:
    """Whether ``value`` is an int; True and False are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_finite(value: object) -> bool:
    """Whether ``value`` is a finite int or float; True and False are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


class AnyText(Text):
    """Text of at most ``max_length`` characters, the empty text included.

    It holds every character, since a language model may write any; ``sample`` draws from printable ASCII.
    """

    def __init__(self, max_length: int = MAX_CHARACTERS) -> None:
        super().__init__(max_length, min_length=0, charset=_SAMPLED_CHARACTERS)

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length


@dataclass(frozen=True)
class Problem:
    """One problem of an environment.

    Attributes:
        prompt: First user turn; it identifies the problem for the split.
        worked_solution: A response that the environment scores as correct, or None if it has none.
        details: Further entries of `reset`'s info.
    """

    prompt: str
    worked_solution: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reply:
    """What an environment answers to one turn of the model.

    Attributes:
        observation: The next user turn; on the last step a closing remark that the model never sees.
        score: None while the episode goes on. On the last step the quality of the answer, 0.0 (wrong) to
            1.0 (correct).
        ends: Ends the episode without a score.
        reward: Reward of a turn that has no score.
        correct: Whether the answer is correct, where the episode ends without a score; None: that is not known.
        truncated: On the last step: the episode ends by a limit of the environment's own, and the task is not over.
        info: Further entries of `step`'s info.
    """

    observation: str = ""
    score: float | None = None
    ends: bool = False
    reward: float = 0.0
    correct: bool | None = None
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


ProblemT = TypeVar("ProblemT", bound=Problem)


class TextEnv(gymnasium.Env[str, str], ABC, Generic[ProblemT]):
    """A task in which text is answered with text. Subclasses write `candidates` and `respond`.

    Observations are user turns, actions are turns of the model. ``terminated`` says that the task is over;
    ``truncated`` is a limit of the task's own, such as a number of turns, that ended it too early. The cap on tokens is the
    business of whoever generates them.

    Args:
        split: Which prompts may be drawn, "train" or "heldout".
        split_seed: Key of the hash that assigns prompts to splits, 0 to 2^64 - 1. Runs that are compared
            must share it.
        correct_reward: Reward of the last step for a correct answer (score 1).
        wrong_reward: Reward of the last step for a wrong answer (score 0); in between it is linear in the
            score. Other steps give what the environment's `Reply.reward` says.

    Raises:
        ValueError: On a bad option; names the option, its value and what is allowed.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (the type is Gymnasium's)

    gives_correct: bool = True
    """Whether last steps say what is correct."""

    without_correct: str = (
        "the data set has no answers; name their column in env_config.answer, or give a reward function of your own"
    )
    """Why they do not, and what to do about it."""

    @property
    def gives_rewards(self) -> bool:
        """Whether steps have rewards of the environment's own; without them a run needs a reward function."""
        return self.gives_correct

    rewards_scores_alone: bool = False
    """Whether all rewards are those of scores: turns without a score give none."""

    @property
    def return_range(self) -> tuple[float, float] | None:
        """Lowest and highest sum of an episode's rewards, 0 included (an episode may be cut off); None: that is not known."""
        if not self.rewards_scores_alone:
            return None
        return min(0.0, self.wrong_reward), max(0.0, self.correct_reward)

    @property
    def num_problems(self) -> int | None:
        """Number of problems of this split, where there is an end to them: numbers k and k + `num_problems` are then of two
        epochs, each of which has every problem once. None: problems are drawn without end.
        """
        return None

    def __init__(
        self,
        *,
        split: Split = "train",
        split_seed: int = 0,
        correct_reward: float = 1.0,
        wrong_reward: float = 0.0,
    ) -> None:
        require(split in SPLITS, "split", split, 'choose "train" or "heldout"')
        require(
            is_integer(split_seed) and 0 <= split_seed < 2**64,
            "split_seed",
            split_seed,
            "give an integer from 0 to 2^64 - 1",
        )
        require(is_finite(correct_reward), "correct_reward", correct_reward, "give a finite number")
        require(is_finite(wrong_reward), "wrong_reward", wrong_reward, "give a finite number")
        require(
            correct_reward > wrong_reward,
            "correct_reward",
            correct_reward,
            f"give more than wrong_reward, which is {wrong_reward!r}",
        )
        self.split: Split = split
        self.split_seed = split_seed
        self.correct_reward = float(correct_reward)
        self.wrong_reward = float(wrong_reward)
        self.observation_space = AnyText()
        self.action_space = AnyText()
        self._problem: ProblemT | None = None
        self._turns = 0
        self._ended = False

    @abstractmethod
    def candidates(self, rng: np.random.Generator) -> Iterator[ProblemT]:
        """Draw problems of both splits without end; all randomness comes from ``rng``.

        The first one whose prompt belongs to this environment's split is taken.
        """

    @abstractmethod
    def respond(self, problem: ProblemT, text: str, turn: int) -> Reply:
        """Answer turn number ``turn`` (from 0) of the model. Must not change ``problem`` and never fails,
        whatever ``text`` is.
        """

    def problem(self, seed: int) -> ProblemT:
        """Problem number ``seed`` (0 or more) of this split.

        Raises:
            ValueError: If no prompt of this split turns up, because the task has too few prompts.
        """
        rng = np.random.default_rng([_PROBLEM_STREAM, seed])
        for problem in islice(self.candidates(rng), MAX_DRAWS):
            if split_of(problem.prompt, self.split_seed) == self.split:
                return problem
        raise ValueError(
            f"split={self.split!r}: none of {MAX_DRAWS} prompts drawn belongs to it, so the task has too few "
            f"different prompts; make the task larger or change split_seed={self.split_seed!r}"
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Number of the problem, 0 or more; it also seeds the sequence of problems that later calls
                without a seed go through. None goes on in that sequence.
            options: Not used.

        Returns:
            The prompt, and an info with ``problem_seed`` (``reset(seed=problem_seed)`` gives the same problem
            again), ``split``, ``worked_solution`` (a response scored as correct) if the environment has one,
            and what the environment adds.
        """
        super().reset(seed=seed)
        problem_seed = int(self.np_random.integers(2**62)) if seed is None else seed
        self._problem = self.problem(problem_seed)
        self._turns = 0
        self._ended = False
        info: dict[str, Any] = {"problem_seed": problem_seed, "split": self.split, **self._problem.details}
        if self._problem.worked_solution is not None:
            info["worked_solution"] = self._problem.worked_solution
        return self._problem.prompt, info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn of the model.

        Args:
            action: The turn's text, without special tokens.

        Returns:
            Observation (the next user turn: context, never trained), reward, terminated, truncated and info. On the last
            step info holds ``correct`` (bool) and ``score`` (0.0 to 1.0), where the environment knows them. With
            ``scorer_error`` (str) in it the scorer failed: reward, ``correct`` and ``score`` mean nothing, and
            the step may be taken once more.

        Raises:
            gymnasium.error.ResetNeeded: Before the first `reset` and after the episode's end.
            TypeError: If ``action`` is not a string.
        """
        problem = self.current_problem
        if self._ended:
            raise ResetNeeded("step() after the episode's end: call reset() first")
        if not isinstance(action, str):
            raise TypeError(f"action must be a str, the text of the turn, not {type(action).__name__}")
        reply = self.respond(problem, action, self._turns)
        info = dict(reply.info)
        # After a failure of the scorer the same turn may be taken again.
        failed = "scorer_error" in info
        self._turns += not failed
        if reply.score is None:
            self._ended = reply.ends and not failed
            if reply.correct is not None:
                info["correct"] = reply.correct
            truncated = reply.ends and reply.truncated
            return reply.observation, reply.reward, reply.ends and not truncated, truncated, info
        self._ended = not failed
        info |= {"correct": reply.score >= 1.0, "score": reply.score}
        return reply.observation, self._reward(reply.score), not reply.truncated, reply.truncated, info

    @property
    def current_problem(self) -> ProblemT:
        """The problem of the episode that runs, or of the last one.

        Raises:
            gymnasium.error.ResetNeeded: Before the first `reset`.
        """
        if self._problem is None:
            raise ResetNeeded("no problem yet: call reset() first")
        return self._problem

    def _reward(self, score: float) -> float:
        return score * self.correct_reward + (1.0 - score) * self.wrong_reward
