"""The program of a scoring worker: it builds environments and rewards, then takes one job after another.

Jobs run on the main thread, so that code which sets alarm signals works. Whatever the user's code prints goes where the parent's
output goes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium

from tppo_rl.config.text_envs import make_text_env
from tppo_rl.core.errors import OptionError, portable
from tppo_rl.core.reward_parts import ENVIRONMENT
from tppo_rl.rollout.dialogs import SCORER_ERROR, Step, take_step, wrong_reward_of
from tppo_rl.rollout.lifeline import die_with_parent
from tppo_rl.rollout.responses import Failure, Scores
from tppo_rl.rollout.rewards import Rewards
from tppo_rl.rollout.scoring_frames import WaitingSocket, frame_of
from tppo_rl.rollout.scoring_jobs import (
    Doing,
    Job,
    Problem,
    PromptText,
    Raised,
    Ready,
    ResetJob,
    Scored,
    ScoreJob,
    Setup,
    StepJob,
)

NOT_REPEATABLE = "not_repeatable"
"""Kind of failure of an environment that is not the same again after the same seed and turns."""
REMEDY = "let reset's info hold plain data, or set scoring_workers to 0"


@dataclass
class _Open:
    """An environment in an episode."""

    env: Any
    split: str
    num_turns: int = 0


class WorkerEnvironments:
    """Environments of the episodes that this worker saw last; an environment whose episode is over serves another one.

    Args:
        make_env: Makes an environment of a split.
        splits: Splits of which one is made at once.
    """

    def __init__(self, make_env: Callable[[str], Any], splits: Sequence[str] = ()) -> None:
        self._make_env = make_env
        self._unused: defaultdict[str, list[Any]] = defaultdict(list)
        self._open: dict[int, _Open] = {}
        for split in splits:
            self._unused[split].append(make_env(split))

    def forget(self, episodes: Sequence[int]) -> None:
        """Takes back the environments of episodes that are over."""
        for episode in episodes:
            if (found := self._open.pop(episode, None)) is not None:
                self._unused[found.split].append(found.env)

    def reset(self, problem: Problem) -> PromptText | Failure:
        """Begins an episode."""
        self.forget([problem.episode])
        env = self._unused[problem.split].pop() if self._unused[problem.split] else self._make_env(problem.split)
        try:
            text, info = env.reset(seed=problem.seed)
            if not isinstance(text, str) or not isinstance(info, Mapping):
                failure = Failure(ENVIRONMENT, "no_text", f"reset must give a text and a mapping, got {text!r}"[:500])
            else:
                _check(text)
                self._open[problem.episode] = _Open(env, problem.split)
                return PromptText(str(text), dict(info), wrong_reward_of(env))
        except (Exception, SystemExit) as error:
            failure = Failure.of(ENVIRONMENT, error)
        _close(env)
        return failure

    def step(self, job: StepJob) -> Step | Failure:
        """Gives an environment a turn of the model, after the earlier ones where it does not have them."""
        failure = self._go_to(job)
        if failure is not None:
            return failure
        found = self._open[job.problem.episode]
        answer = take_step(found.env, job.said, attempts=job.attempts)
        if isinstance(answer, Failure):
            self._drop(job.problem.episode, serves_on=answer.kind == SCORER_ERROR)
            return answer
        found.num_turns += 1
        if answer.ended:
            self._drop(job.problem.episode, serves_on=True)
            # The text of the last step goes nowhere, and may be anything.
            return answer._replace(text="")
        try:
            _check(answer.text)
        except UnicodeEncodeError as error:
            self._drop(job.problem.episode, serves_on=True)
            return Failure.of(ENVIRONMENT, error)
        return answer._replace(text=str(answer.text))

    def _go_to(self, job: StepJob) -> Failure | None:
        """Brings the episode to the turn before this one."""
        found = self._open.get(job.problem.episode)
        if found is not None and found.num_turns == len(job.turns):
            return None
        prompt = self.reset(job.problem)
        if isinstance(prompt, Failure):
            return prompt
        if prompt.text != job.prompt:
            self._drop(job.problem.episode, serves_on=False)
            return Failure(
                ENVIRONMENT,
                NOT_REPEATABLE,
                f"reset(seed={job.problem.seed}) must always give the same problem; it gave another prompt the second time",
            )
        found = self._open[job.problem.episode]
        for turn in job.turns:
            answer = take_step(found.env, turn)
            if isinstance(answer, Failure) or answer.ended:
                self._drop(job.problem.episode, serves_on=False)
                said = answer.message if isinstance(answer, Failure) else "it ended the episode earlier"
                return Failure(ENVIRONMENT, NOT_REPEATABLE, f"the same turns must have the same answers: {said}"[:500])
            found.num_turns += 1
        return None

    def _drop(self, episode: int, *, serves_on: bool) -> None:
        found = self._open.pop(episode)
        if serves_on:
            self._unused[found.split].append(found.env)
        else:
            # What an environment is worth after an error, nobody knows.
            _close(found.env)


class Desk:
    """Everything that a worker has, and what it does with a job.

    Args:
        setup: What it is made of.
        on_call: Called with the name of each part of the reward before it is called.

    Raises:
        Exception: the environment or a reward cannot be built.
    """

    def __init__(self, setup: Setup, on_call: Callable[[str], None]) -> None:
        if setup.registered is not None and setup.registered[0] not in gymnasium.registry:
            gymnasium.register(setup.registered[0], entry_point=setup.registered[1])
        self._environments = WorkerEnvironments(partial(make_text_env, setup.options.environment), setup.splits)
        self._rewards = Rewards.of(setup.options, on_call=on_call)

    def forget(self, episodes: Sequence[int]) -> None:
        """Takes back the environments of episodes that are over."""
        self._environments.forget(episodes)

    def work(self, job: Job) -> PromptText | Step | Failure | Scored | Raised:
        """Does a job.

        An error that an option causes ends the run, as it does in the env-runner's process.
        """
        try:
            match job:
                case ResetJob():
                    return self._environments.reset(job.problem)
                case StepJob():
                    return self._environments.step(job)
                case ScoreJob():
                    scores = Scores()
                    verdicts = self._rewards.verdicts(job.responses, scores, version=job.version)
                    return Scored(verdicts, scores)
        except OptionError as error:
            return Raised(portable(error, "a scoring worker"))
        except MemoryError as error:
            return Failure.of(ENVIRONMENT, error)
        except Exception as error:
            return Raised(portable(error, "a scoring worker"))


def main(descriptor: int, lifeline: int) -> None:
    """Works until the parent is gone.

    Args:
        descriptor: Socket of the parent.
        lifeline: Pipe that the parent's end closes.
    """
    die_with_parent(lifeline)
    parent = WaitingSocket(descriptor)
    try:
        setup: Setup = parent.receive()
        try:
            desk = Desk(setup, lambda name: parent.send(Doing(name)))
        except (Exception, SystemExit) as error:
            reason = error if isinstance(error, Exception) else RuntimeError(f"it calls sys.exit: {error}")
            parent.send(Raised(portable(reason, "a scoring worker")))
            return
        parent.send(Ready())
        while True:
            message = parent.receive()
            desk.forget(message.over)
            _answer(parent, desk.work(message.job))
    except (EOFError, ConnectionError):
        return


def _answer(parent: WaitingSocket, answer: Any) -> None:
    try:
        frame_of(answer)
    except Exception as error:
        answer = Failure(
            ENVIRONMENT, "exception", f"what it gave cannot be sent between processes: {error}; {REMEDY}"[:500]
        )
    parent.send(answer)


def _check(text: str) -> None:
    """Raises on a text that no tokenizer takes, such as a lone surrogate."""
    text.encode()


def _close(env: Any) -> None:
    with suppress(Exception):
        env.close()
