"""Single-turn environments and tasksets of the verifiers library and its hub."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tppo_rl.envs.data_questions import RENAMED, RESERVED, order_of_epoch
from tppo_rl.envs.text_env import HELDOUT_FRACTION, Problem, Reply, TextEnv, is_finite, is_integer, require, split_of
from tppo_rl.envs.verifiers_tasks import Task, load_tasks


@dataclass(frozen=True)
class TaskProblem(Problem):
    """A question and the package's own rewards for it."""

    task: Task | None = None


class Verifiers(TextEnv[TaskProblem]):
    """A question of a verifiers package an episode, one turn. Registered as ``tppo_rl/Verifiers-v0``.

    The package has a function ``load_environment`` that gives a single-turn environment, or it exports a ``Taskset``. The reward is the
    weighted sum of its rubric's functions, or of its tasks' methods marked ``@reward``. What they raise is a failure, and not 0.

    With n questions in its split, problem number k is question ``k % n`` in the order of epoch ``k // n``. A question that the package has
    twice is asked once an epoch.

    `reset`'s info adds ``messages``, the turns before the prompt, and what the package says of ``answer``, ``info``, ``name``, ``id``,
    ``idx`` and ``task`` (those that are taken have ``row_`` before them).

    Args:
        package: Module, hub id such as `owner/name` of a package that is installed, or Python file.
        arguments: Arguments of ``load_environment``, or fields of the taskset's config.
        limit: Most questions that are read; a taskset without an end needs it.
        heldout: {fraction: 0.1}, by hash of the prompt.
        correct_from: Reward from which a response counts as correct. None: it is not known what is correct.
        **common: Options of every environment, see `TextEnv`; without `correct_reward` and `wrong_reward`.

    Raises:
        ValueError: On a bad option or package; names the option, its value and what is allowed.
    """

    def __init__(
        self,
        *,
        package: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        limit: int | None = None,
        heldout: Mapping[str, float] | None = None,
        correct_from: float | None = None,
        **common: Any,
    ) -> None:
        super().__init__(**common)
        require(
            isinstance(package, str) and package != "",
            "package",
            package,
            "give a module, a hub id such as owner/name, or a Python file",
        )
        require(
            arguments is None or isinstance(arguments, Mapping),
            "arguments",
            arguments,
            "give a mapping of names to values",
        )
        require(
            limit is None or (is_integer(limit) and limit > 0), "limit", limit, "give an integer of 1 or more, or None"
        )
        share = {"fraction": HELDOUT_FRACTION} if heldout is None else heldout
        require(
            isinstance(share, Mapping)
            and set(share) == {"fraction"}
            and is_finite(share["fraction"])
            and 0 < share["fraction"] < 1,
            "heldout",
            heldout,
            "give {fraction: 0.1}, with a number between 0 and 1",
        )
        require(
            correct_from is None or is_finite(correct_from),
            "correct_from",
            correct_from,
            "give a finite number, or None",
        )
        self.correct_from = correct_from
        self.gives_correct = correct_from is not None
        self.without_correct = "the package gives numbers, and not what is correct; set env_config.correct_from to the reward of a right response"
        tasks = load_tasks(str(package), arguments or {}, limit)
        own = {
            (task.before_text, task.prompt): task
            for task in tasks
            if split_of(task.prompt, self.split_seed, share["fraction"]) == self.split
        }
        self._tasks = list(own.values())
        if not self._tasks:
            raise ValueError(
                f"split={self.split!r}: none of the {len(tasks)} questions of package={package!r} belongs to it; raise limit, or change "
                "heldout"
            )

    @property
    def gives_rewards(self) -> bool:
        """The package's rewards."""
        return True

    @property
    def num_problems(self) -> int:
        """Number of questions in this split."""
        return len(self._tasks)

    def problem(self, seed: int) -> TaskProblem:
        """Problem number `seed` of this split."""
        epoch, position = divmod(seed, self.num_problems)
        return _problem(self._tasks[int(order_of_epoch(self.num_problems, self.split_seed, epoch)[position])])

    def candidates(self, rng: np.random.Generator) -> Iterator[TaskProblem]:
        """Questions of this split, drawn at random."""
        while True:
            yield _problem(self._tasks[int(rng.integers(self.num_problems))])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode, see `TextEnv.reset`."""
        prompt, info = super().reset(seed=seed, options=options)
        # All environments of the process share the questions.
        return prompt, copy.deepcopy(info)

    def respond(self, problem: TaskProblem, text: str, turn: int) -> Reply:
        """Score the response; the episode ends with the first turn."""
        assert problem.task is not None
        try:
            reward = problem.task.reward(text)
        except Exception as error:  # the package's code reads the model's text and may raise anything on it
            return Reply(ends=True, info={"scorer_error": repr(error)})
        correct = None if self.correct_from is None else reward >= self.correct_from
        return Reply(ends=True, reward=reward, correct=correct)


def _problem(task: Task) -> TaskProblem:
    own = {RENAMED + name if name in RESERVED else name: value for name, value in task.columns.items()}
    return TaskProblem(task.prompt, None, {**own, "messages": [dict(one) for one in task.before]}, task)
