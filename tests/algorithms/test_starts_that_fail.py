"""A start that hangs ends with one message after its limit, and leaves no process behind."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import ray

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.learner.learner import TPPOLearner
from tppo_rl.learner.learner_group import LearnerDied
from tppo_rl.rollout.env_runner import VLLMEnvRunner

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


def sleep_for_ever() -> None:
    while True:
        time.sleep(1.0)


class HangingEnvRunner(VLLMEnvRunner):
    def _build_engine(self) -> Any:
        sleep_for_ever()


class LearnerThatHangsInItsBuild(TPPOLearner):
    def build(self) -> None:
        sleep_for_ever()


class LearnerThatHangsAtOnce(TPPOLearner):
    def __init__(self, **kwargs: Any) -> None:
        sleep_for_ever()


def wait_until_all_is_given_back() -> None:
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the room is still taken"
        time.sleep(0.2)


def test_an_env_runner_that_hangs_in_its_start_is_one_message(small_config: TPPOConfig) -> None:
    config = small_config.env_runners(env_runner_cls=HangingEnvRunner).pipeline(start_timeout_s=40.0)
    with pytest.raises(RunError, match=r"^not started after 40 s \(start_timeout_s\): env-runner 1: the process runs"):
        config.build_algo()
    wait_until_all_is_given_back()


def test_env_runners_for_evaluation_too(small_config: TPPOConfig) -> None:
    class HangsInEvaluation(VLLMEnvRunner):
        def _build_engine(self) -> Any:
            if self.config.in_evaluation:
                sleep_for_ever()
            return super()._build_engine()

    config = small_config.env_runners(env_runner_cls=HangsInEvaluation).evaluation(evaluation_num_env_runners=1)
    says = r"^not started after 40 s \(start_timeout_s\): evaluation env-runner 1: the process runs"
    with pytest.raises(RunError, match=says):
        config.pipeline(start_timeout_s=40.0).build_algo()


@pytest.mark.parametrize("learner_class", [LearnerThatHangsInItsBuild, LearnerThatHangsAtOnce])
def test_learners_that_hang_in_their_start_are_one_message(small_config: TPPOConfig, learner_class: type) -> None:
    config = small_config.learners(learner_class=learner_class, num_learners=1).pipeline(start_timeout_s=40.0)
    with pytest.raises(
        LearnerDied, match=r"^learners have not started after 40 s \(start_timeout_s\), and were killed"
    ):
        config.build_algo()
    wait_until_all_is_given_back()


def test_what_a_failed_start_has_begun_in_this_process_is_stopped(small_config: TPPOConfig) -> None:
    stopped: list[Any] = []

    class Noticed(VLLMEnvRunner):
        def stop(self) -> None:
            stopped.append(self._engine)
            super().stop()

    class FailingLearner(TPPOLearner):
        def build(self) -> None:
            raise RuntimeError("no model")

    config = small_config.env_runners(env_runner_cls=Noticed, num_env_runners=0).pipeline(mode="sync")
    with pytest.raises(RuntimeError, match="no model"):
        config.learners(learner_class=FailingLearner).build_algo()
    assert len(stopped) == 1
    assert stopped[0] is not None


def test_learners_without_room_are_one_message(small_config: TPPOConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tppo_rl.algorithms.resources.ray_started_here", lambda: False)
    config = small_config.learners(num_learners=9).pipeline(start_timeout_s=60.0)
    with pytest.raises(OptionError, match=r"num_learners=9: Ray's nodes had no room for them"):
        config.build_algo()
