"""TRL's `environment_factory`: an object whose public methods are the tools of an episode, over the rows of a data set."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tppo_rl.core.registry import find_object
from tppo_rl.envs.data_questions import DatasetProblem
from tppo_rl.envs.dataset import Dataset
from tppo_rl.envs.text_env import Reply, is_finite, is_integer, require
from tppo_rl.envs.tool_calls import TOOL_SCHEMAS, Tools, finished, tool_calls

_COLUMN = "environment"
_NO_TOOLS = ("reset", "get_reward")


class TRLEnvironment(Dataset):
    """An environment that was written for TRL's trainers. Registered as ``tppo_rl/TRLEnvironment-v0``.

    A row of the data is an episode. The object's ``reset(**columns)`` gets the row, and a text that it returns stands after the
    prompt. Its other public methods are tools: their type hints and Google-style docstrings are their schemas, which go to the
    chat template (``tool_schemas`` in `reset`'s info). A turn that calls tools gets their answers as the next user turn; what a
    tool raises is its answer, ``{'error': …}``. A turn without a call ends the episode.

    The reward is what ``get_reward()`` returns then. An object without it leaves the last turn to the data's `answer` and its
    verifier; without an answer the run's ``rewards`` must be a function. Async methods work.

    Every environment has an object of its own, made once and reset for each episode. What it does must follow from its row and
    the calls: a scoring worker may go through them once more.

    Args:
        factory: Place of a callable without arguments, `module:object` or `file.py:object`, which makes the object; or of a mapping
            of names to such callables. Then each row says in its column ``environment`` which one is its own.
        max_turns: Turns that may call tools; a further one that does ends the episode as truncated, and its calls are not made.
            None: as many as the response has room for.
        correct_from: Reward of `get_reward` from which a response counts as correct. None: it is not known what is correct.
        **data: Options of `Dataset`, and of every environment.

    Raises:
        ValueError: On a bad option; names the option, its value and what is allowed.
    """

    rewards_scores_alone = False

    def __init__(
        self,
        *,
        factory: str | None = None,
        max_turns: int | None = None,
        correct_from: float | None = None,
        **data: Any,
    ) -> None:
        require(
            isinstance(factory, str) and ":" in factory,
            "factory",
            factory,
            "give the place of a callable that makes the environment, module:object or file.py:object",
        )
        require(
            max_turns is None or (is_integer(max_turns) and max_turns >= 1),
            "max_turns",
            max_turns,
            "give an integer of 1 or more, or None",
        )
        require(
            correct_from is None or is_finite(correct_from),
            "correct_from",
            correct_from,
            "give a finite number, or None",
        )
        self.factory = str(factory)
        self.max_turns = max_turns
        self.correct_from = correct_from
        made = find_object("factory", self.factory)
        self._by_name = isinstance(made, Mapping)
        factories: Mapping[Any, Any] = made if isinstance(made, Mapping) else {None: made}
        self._objects = {name: self._object(one) for name, one in factories.items()}
        self._tools = {name: Tools(one, "factory", self.factory, _NO_TOOLS) for name, one in self._objects.items()}
        super().__init__(**data)
        rewarding = [_has_method(one, "get_reward") for one in self._objects.values()]
        require(
            correct_from is None or all(rewarding),
            "correct_from",
            correct_from,
            f"it is a reward of get_reward, which {self.factory} does not have; remove the key",
        )
        self._gives_rewards = self.gives_correct or all(rewarding)
        self.gives_correct = correct_from is not None or (self.gives_correct and not any(rewarding))
        self.without_correct = (
            f"{self.factory} has no get_reward, and the data have no answers; give it one, name the column of the answers in "
            "env_config.answer, or give a reward function of your own"
            if not all(rewarding)
            else "get_reward gives a number, and not what is correct; set env_config.correct_from to the reward of a right response"
        )
        if self._by_name:
            for one in self._problems:
                self._name_of(one)

    @property
    def gives_rewards(self) -> bool:
        """Whether `get_reward` or answers give rewards."""
        return self._gives_rewards

    def problem(self, seed: int) -> DatasetProblem:
        """Problem number `seed` of this split, with the schemas of its tools."""
        return self._with_tools(super().problem(seed))

    def longest_prompts(self, number: int) -> Sequence[DatasetProblem]:
        """The questions with the most characters, longest first; what `reset` of the object adds is not known beforehand."""
        return [self._with_tools(one) for one in super().longest_prompts(number)]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, see `TextEnv.reset`.

        Raises:
            TypeError: The object's `reset` returns something else than a text or None.
        """
        prompt, info = super().reset(seed=seed, options=options)
        problem = self.current_problem
        columns = {name: value for name, value in problem.columns.items() if not (self._by_name and name == _COLUMN)}
        # The object may change what it gets, and all environments of the process share the rows.
        said = finished(self._objects[self._name_of(problem)].reset(**copy.deepcopy(columns)))
        if said is None:
            return prompt, info
        if not isinstance(said, str):
            raise TypeError(f"factory={self.factory!r}: reset must return a text or None, not {type(said).__name__}")
        return prompt + said, info

    def respond(self, problem: DatasetProblem, text: str, turn: int) -> Reply:
        """Make the calls of the turn, or score the last turn."""
        name = self._name_of(problem)
        calls = tool_calls(text)
        spent = self.max_turns is not None and turn >= self.max_turns
        if calls and not spent:
            return Reply(self._tools[name].answer(calls))
        owner = self._objects[name]
        if not _has_method(owner, "get_reward"):
            if not calls:
                return super().respond(problem, text, turn)
            # A verifier that looks for the answer in a text may find it in a call that is not made.
            is_scored = self._verify is not None and problem.answer is not None
            return Reply(score=0.0 if is_scored else None, ends=True, truncated=True)
        reward = finished(owner.get_reward())
        if not isinstance(reward, int | float | np.number) or not math.isfinite(reward):
            raise TypeError(f"factory={self.factory!r}: get_reward must return a finite number, not {reward!r}"[:300])
        correct = None if self.correct_from is None else bool(reward >= self.correct_from)
        return Reply(ends=True, reward=float(reward), correct=correct, truncated=bool(calls))

    def close(self) -> None:
        """Close the objects that can be closed, by a method ``_close``, which is no tool."""
        for one in self._objects.values():
            if _has_method(one, "_close"):
                one._close()

    def _object(self, make: Callable[[], Any]) -> Any:
        require(callable(make), "factory", self.factory, f"{make!r} cannot be called; name a class or a function")
        try:
            made = make()
        except Exception as error:
            raise ValueError(
                f"factory={self.factory!r}: it raises {type(error).__name__}: {error}; it is called without arguments"
            ) from error
        require(_has_method(made, "reset"), "factory", self.factory, "what it makes has no method `reset`; give it one")
        return made

    def _name_of(self, problem: DatasetProblem) -> Any:
        if not self._by_name:
            return None
        name = problem.columns.get(_COLUMN)
        require(
            name in self._objects,
            "factory",
            self.factory,
            f"a row has environment={name!r}, and there are {', '.join(map(str, self._objects))}; correct the column `environment`",
        )
        return name

    def _with_tools(self, problem: DatasetProblem) -> DatasetProblem:
        name = self._name_of(problem)
        schemas = self._tools[name].schemas
        details = {**problem.details, TOOL_SCHEMAS: schemas} if schemas else problem.details
        # The answer of the data is no gold response where `get_reward` decides.
        decides = _has_method(self._objects[name], "get_reward")
        return replace(problem, details=details, worked_solution=None if decides else problem.worked_solution)


def _has_method(owner: Any, name: str) -> bool:
    return callable(inspect.getattr_static(owner, name, None)) and callable(getattr(owner, name, None))
