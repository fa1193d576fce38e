"""A synchronous run whose engine's core has a process of its own: it is on policy, as in one process."""

from __future__ import annotations

import pytest

from tppo_rl.algorithms import TPPOConfig

pytestmark = pytest.mark.slow


@pytest.mark.timeout(900)
def test_a_synchronous_run_is_on_policy_with_a_core_of_its_own(small_config: TPPOConfig) -> None:
    small_config.env_runners(engine={"multiprocessing": True}).pipeline(mode="sync").training(critic_warmup_updates=0)
    small_config.evaluation(evaluation_interval=None)
    algorithm = small_config.build_algo()
    try:
        results = [algorithm.train() for _ in range(3)]
    finally:
        algorithm.stop()
    for result in results:
        assert result["staleness"]["max"] == 0
        assert result["mismatch"]["fresh_log_prob_diff_mean"] < 1e-5
        assert result["mismatch"]["ratio_deviation_max"] < 1e-3
