"""A synchronous run whose learner broadcasts its weights to engines: on policy, also after an env-runner was lost."""

from __future__ import annotations

import os
import signal
from collections import deque
from typing import Any

import pytest
import ray

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.learner.learner_group import LearnerDied
from tppo_rl.rollout import weight_broadcast
from tppo_rl.rollout.weight_broadcast import WeightsNotReceived

pytestmark = pytest.mark.slow


@pytest.mark.timeout(1800)
def test_a_run_with_weights_by_broadcast_is_on_policy_and_survives(small_config: TPPOConfig) -> None:
    small_config.learners(num_learners=1).training(critic_warmup_updates=0)
    small_config.pipeline(mode="sync", weight_transport="broadcast", env_runner_timeout_s=1200)
    small_config.evaluation(evaluation_interval=None)
    algorithm: Any = small_config.build_algo()
    try:
        results = [algorithm.train() for _ in range(3)]
        # The learner keeps the newest weights alone.
        copies = algorithm.learner_group.ask(lambda learner: list(weight_broadcast._senders[learner]._copies))
        assert copies == [[4]]
        ray.kill(algorithm.env_runner_group._worker_manager.actors()[1], no_restart=False)
        results += [algorithm.train() for _ in range(3)]
        assert results[-1]["fault_tolerance"]["num_remote_worker_restarts"] == 1
        for result in results:
            assert result["staleness"]["max"] == 0
            assert result["mismatch"]["fresh_log_prob_diff_mean"] < 1e-5
            assert result["mismatch"]["ratio_deviation_max"] < 1e-3
        # Proven against the learner, by an engine that has had weights by broadcast alone.
        assert algorithm.loop.weights.verify() < 1e-4
        os.kill(algorithm.learner_group.ask(lambda learner: os.getpid())[0], signal.SIGKILL)
        with pytest.raises((LearnerDied, WeightsNotReceived), match="newest checkpoint"):
            deque((algorithm.train() for _ in range(3)), maxlen=0)
    finally:
        algorithm.stop()
