"""Ten thousand hostile answers to all verifiers and all tasks of reasoning-gym: scores and named failures, nothing else."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hostile_envs
import numpy as np
import pytest
from reasoning_gym.factory import DATASETS

from tppo_rl.config.options import Options
from tppo_rl.envs.verifiers import VERIFIERS
from tppo_rl.experiment.hostile_texts import HOSTILE
from tppo_rl.rollout.dialogs import SCORER_ERROR, Step
from tppo_rl.rollout.responses import KILLED, Failure
from tppo_rl.rollout.scoring_jobs import Problem, StepJob
from tppo_rl.rollout.scoring_pool import ScoringPool

ANSWERS = int(os.environ.get("TPPO_RL_HOSTILE_ANSWERS", "10000"))
EVERY = 100
"""One of so many answers hangs."""
DEADLINE_S = 1.0
TARGETS_OF_A_POOL = 10
NOT_ALONE = {"composite"}
"""Tasks that are made of others, and are none without them."""
TARGETS = [
    *(f"verifier:{name}" for name in sorted(VERIFIERS)),
    *(f"task:{name}" for name in sorted(DATASETS) if name not in NOT_ALONE),
]
FORMS = (
    "{}",
    "<answer>{}</answer>",
    "\\boxed{{{}}}",
    "#### {}",
    "The answer is {}.",
    "<think>{0}</think>{0}",
    "{0}\n{0}",
)


class TimedPool(ScoringPool):
    """A pool that notes how long each job was at a worker: those that were answered, and those whose worker was killed."""

    def __init__(self, *arguments: Any) -> None:
        self.answered: list[float] = [0.0]
        self.killed: list[float] = [0.0]
        self._given: dict[int, float] = {}
        super().__init__(*arguments)

    def _give(self, worker: Any, task: Any) -> None:
        self._given[id(task)] = time.monotonic()
        super()._give(worker, task)

    def _finish(self, worker: Any, result: Any) -> None:
        if worker.task is not None:
            is_killed = isinstance(result, Failure) and result.kind in KILLED
            seconds = time.monotonic() - self._given.pop(id(worker.task))
            (self.killed if is_killed else self.answered).append(seconds)
        super()._finish(worker, result)


def answers(rng: np.random.Generator) -> Iterator[str]:
    """Hostile texts in the forms that scorers look for, some of them cut."""
    texts = list(HOSTILE.values())
    while True:
        text = texts[rng.integers(len(texts))]
        if rng.random() < 0.3:
            text = text[: rng.integers(len(text) + 1)]
        yield FORMS[rng.integers(len(FORMS))].format(text)


def play(targets: list[str], place: str, count: int, first: int) -> tuple[Counter[str], list[str], float, float]:
    """Gives `count` answers to targets in turn: what came of them, what counts as right, the longest answer and the latest kill."""
    options = Options.of(
        {
            "env": f"{place}:Hostile-v0", "env_config": {"targets": targets}, "scoring_workers": 2,
            "scoring_deadline_s": DEADLINE_S, "scoring_memory_gib": 1.5,
        }
    )  # fmt: skip
    pool = TimedPool(options, 2, ("train",))
    outcomes: Counter[str] = Counter()
    right: list[str] = []
    texts = answers(np.random.default_rng(first))
    try:
        pool.wait_until_ready()
        flying = 0

        def take(target: str, said: str, episode: int, answer: Any) -> None:
            nonlocal flying
            flying -= 1
            pool.forget(episode)
            if isinstance(answer, Failure):
                assert answer.kind in {SCORER_ERROR, "exception", "not_finite", *KILLED}, answer
                assert said != hostile_envs.HANG or answer.kind == "timeout"
                outcomes[f"{'hang, ' if said == hostile_envs.HANG else ''}{answer.kind}"] += 1
                if said != hostile_envs.HANG and answer.kind in KILLED:
                    outcomes[f"{answer.kind} of {target}"] += 1
                return
            assert isinstance(answer, Step)
            assert answer.ended
            outcomes["scored"] += 1
            if answer.correct:
                right.append(f"{target}: {said!r:.100}")

        for number in range(first, first + count):
            target = targets[number % len(targets)]
            said = hostile_envs.HANG if number % EVERY == 0 else next(texts)
            episode = pool.new_episode()
            job = StepJob(Problem(episode, "train", number), target, (), said, 1)
            flying += 1
            pool.submit(job, lambda answer, t=target, s=said, e=episode: take(t, s, e, answer))
            while flying >= 4:
                pool.wait(1.0)
        while flying:
            pool.wait(1.0)
    finally:
        pool.close()
    return outcomes, right, max(pool.answered), max(pool.killed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_hostile_answers_are_scored_or_named_failures_and_none_is_right(tmp_path: Path) -> None:
    place = shutil.copy(Path(hostile_envs.__file__), tmp_path / "my_hostile.py")
    outcomes: Counter[str] = Counter()
    right: list[str] = []
    longest = latest = 0.0
    groups = [TARGETS[start : start + TARGETS_OF_A_POOL] for start in range(0, len(TARGETS), TARGETS_OF_A_POOL)]
    given = 0
    for index, group in enumerate(groups):
        until = round(ANSWERS * (index + 1) / len(groups))
        found = play(group, str(place), until - given, given)
        outcomes += found[0]
        right += found[1]
        longest, latest = max(longest, found[2]), max(latest, found[3])
        given = until
        print(
            f"{given} answers: {dict(outcomes)}, longest answer {longest:.2f} s, latest kill {latest:.2f} s, right {right}",
            flush=True,
        )
    assert right == []
    of_all = {name: count for name, count in outcomes.items() if " of " not in name}
    assert sum(of_all.values()) == ANSWERS
    assert outcomes["hang, timeout"] == len(range(0, ANSWERS, EVERY))
    # What takes longer is killed. The pool looks at the clock some twenty times a second, on a busy machine less often, and ending a
    # process takes time, too.
    assert longest < DEADLINE_S + 1.0
    assert latest < DEADLINE_S + 10.0
