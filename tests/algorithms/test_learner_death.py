"""A learner whose process is killed ends the run with one message, and what a learner refuses is an error."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from pathlib import Path
from typing import Any

import pytest

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.learner.learner_group import LearnerDied

pytestmark = pytest.mark.integration


def look(group: Any) -> None:
    group.check_alive()
    time.sleep(0.1)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("num_learners", "killed"), [(1, 0), pytest.param(2, 1, marks=pytest.mark.slow)])
def test_a_killed_learner_is_the_error_of_the_run(small_config: TPPOConfig, num_learners: int, killed: int) -> None:
    small_config.learners(num_learners=num_learners).evaluation(evaluation_interval=None)
    algorithm: Any = small_config.build_algo()
    try:
        algorithm.train()
        algorithm.learner_group.check_alive()
        os.kill(algorithm.learner_group.ask(lambda learner: os.getpid())[killed], signal.SIGKILL)
        with pytest.raises(LearnerDied, match=rf"^learner {killed} of {num_learners} died"):
            deque((look(algorithm.learner_group) for _ in range(600)), maxlen=0)
        with pytest.raises(LearnerDied, match=rf"^learner {killed} of {num_learners} died .*newest checkpoint"):
            deque((algorithm.train() for _ in range(3)), maxlen=0)
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_learner_that_hangs_is_killed_and_is_the_error_of_the_run(small_config: TPPOConfig) -> None:
    small_config.learners(num_learners=1, learner_timeout_s=25.0).evaluation(evaluation_interval=None)
    algorithm: Any = small_config.build_algo()
    try:
        algorithm.train()
        pid = algorithm.learner_group.ask(lambda learner: os.getpid())[0]
        os.kill(pid, signal.SIGSTOP)
        with pytest.raises(LearnerDied, match=r"^learners gave no answer for 25 s \(learner_timeout_s\)"):
            deque((algorithm.train() for _ in range(3)), maxlen=0)
        deadline = time.monotonic() + 60
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_state_that_a_learner_cannot_take_is_an_error(small_config: TPPOConfig) -> None:
    small_config.learners(num_learners=1).evaluation(evaluation_interval=None)
    algorithm: Any = small_config.build_algo()
    try:
        state = algorithm.learner_group.get_state()
        weights = state["learner"]["rl_module"]["default_policy"]["policy"]
        weights["no.such.weight"] = weights.pop(next(iter(weights)))
        with pytest.raises(RuntimeError, match=r"no\.such\.weight"):
            algorithm.learner_group.set_state(state)
        with pytest.raises(ZeroDivisionError):
            algorithm.learner_group.ask(lambda learner: 1 // 0)
        algorithm.train()
    finally:
        algorithm.stop()
