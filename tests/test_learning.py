"""The quickstart learns, in both modes. Minutes each: `make test-slow`."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from tppo_rl.config.run_files import load_run_file
from tppo_rl.experiment.run import run_experiment

pytestmark = pytest.mark.integration

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", ["async", "sync"])
def test_heldout_accuracy_rises_and_responses_grow(mode: str, tmp_path: Path) -> None:
    overrides = [f"mode={mode}", "seed=3", "stop.num_env_steps_sampled_lifetime=150000", "evaluation_interval=1000"]
    # In sync mode a batch is what all slots sample in one window.
    overrides += ["num_envs_per_env_runner=128"] if mode == "sync" else []
    (experiment,) = load_run_file(QUICKSTART, overrides)
    try:
        summary = run_experiment(experiment, tmp_path)
    finally:
        ray.shutdown()
    assert summary["heldout_n"] >= 512
    assert summary["heldout_accuracy_after"] - summary["heldout_accuracy_before"] >= 0.25
    assert summary["heldout_accuracy_after_greedy"] >= summary["heldout_accuracy_before_greedy"]
    assert summary["heldout_response_length_after"] > 1.5 * summary["heldout_response_length_before"]
    assert summary["slot_occupancy"] >= 0.95
    if mode == "sync":
        assert summary["largest_staleness"] == 0
