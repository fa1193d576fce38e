"""One scoring worker that is asked question after question, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tppo_rl.config.options import Options
from tppo_rl.rollout.dialogs import Step
from tppo_rl.rollout.responses import Failure
from tppo_rl.rollout.scoring_jobs import Job, Problem, PromptText, ResetJob, StepJob
from tppo_rl.rollout.scoring_pool import ScoringPool


@dataclass(frozen=True)
class Asked:
    """An answer, and what was asked."""

    problem: Problem
    answer: PromptText | Step | Failure

    @property
    def text(self) -> str:
        """The prompt; empty where there is none."""
        return self.answer.text if isinstance(self.answer, PromptText) else ""

    @property
    def gold(self) -> tuple[str, ...]:
        """The turns of the gold response; empty where reset gives none."""
        info = self.answer.info if isinstance(self.answer, PromptText) else {}
        found = info.get("worked_turns", (info.get("worked_solution"),))
        return tuple(found) if all(isinstance(turn, str) for turn in found) else ()

    @property
    def content(self) -> Any:
        """What must be the same for the same seed."""
        return (self.text, self.gold) if isinstance(self.answer, PromptText) else self.answer


class EnvWorker:
    """A pool of one worker.

    Args:
        options: Environment, deadline and memory limit.

    Raises:
        Exception: the environment cannot be made in a process of its own.
    """

    def __init__(self, options: Options) -> None:
        self.reset_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self._last: int | None = None
        self._pool = ScoringPool(options, 1, ("train", "heldout"))
        try:
            self._pool.wait_until_ready()
        except BaseException:
            self._pool.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()

    def reset(self, split: str, seed: int) -> Asked:
        """Begins an episode; the one before is over."""
        if self._last is not None:
            self._pool.forget(self._last)
        self._last = self._pool.new_episode()
        problem = Problem(self._last, split, seed)
        return Asked(problem, self._ask(ResetJob(problem), self.reset_seconds))

    def step(self, prompt: Asked, turns: Sequence[str], said: str) -> Asked:
        """Takes a turn after others of an episode, which begins once more where the worker does not have it."""
        job = StepJob(prompt.problem, prompt.text, tuple(turns), said, 1)
        return Asked(prompt.problem, self._ask(job, self.step_seconds))

    def _ask(self, job: Job, seconds: list[float]) -> Any:
        answers: list[Any] = []
        started = time.perf_counter()
        self._pool.submit(job, answers.append)
        # The pool keeps the deadline.
        while not answers:
            self._pool.wait(1.0)
        seconds.append(time.perf_counter() - started)
        return answers[0]
