"""An asynchronous run is made again from the order of its events, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.errors import OptionError, RunError
from tppo_rl.experiment.replay import first_difference, replay, report

pytestmark = pytest.mark.integration


def recorded(folder: Path, updates: int, **options: Any) -> None:
    values = {
        "policy_model": "tppo_rl/arithmetic-chain-long-tail",
        "env": "tppo_rl/ArithmeticChain-v0",
        "env_config": {"max_operands": 12, "tail_exponent": 4.0, "long_share": 1.0},
        "num_env_runners": 2,
        "num_cpus_per_env_runner": 0.5,
        "num_envs_per_env_runner": 8,
        "window_length": 8,
        "max_response_length": 96,
        "max_prompt_length": 128,
        "train_batch_size_per_learner": 128,
        "scoring_workers": 0,
        "lr": 1e-4,
        "evaluation_interval": 3,
        "evaluation_duration": 16,
        "results_folder": str(folder),
        "record_events": True,
    }
    algorithm = TPPOConfig().update_from_dict(values | options).build_algo()
    for _ in range(updates):
        algorithm.train()
    algorithm.stop()


@pytest.mark.parametrize(
    ("updates", "env_runners"), [(3, 1), pytest.param(50, 2, marks=pytest.mark.slow)], ids=["one", "two for 50 updates"]
)
def test_a_run_is_replayed_to_the_last_bit(updates: int, env_runners: int, tmp_path: Path) -> None:
    recorded(tmp_path / "run", updates, num_env_runners=env_runners)
    found = list(replay(tmp_path / "run", tmp_path / "replay", None))
    assert found == [(number, True) for number in range(1, updates + 1)]
    # The rollouts, of which a run keeps a part, are far larger than the events.
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    size = sum(len(line) for line in events[1:])
    rollouts = sum(file.stat().st_size for file in (tmp_path / "run" / "rollouts").glob("*.parquet"))
    assert size < 0.05 * rollouts


def test_the_first_difference_is_named() -> None:
    assert report(*first_difference(iter([(1, True), (2, True)]))).startswith("2 updates made again")
    with pytest.raises(RunError, match="the weights differ after update 2, and were equal before"):
        report(*first_difference(iter([(1, True), (2, False), (3, False)])))


def test_what_cannot_be_replayed_is_said(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no events\.jsonl"):
        next(replay(tmp_path, tmp_path / "replay", None))
    with pytest.raises(OptionError, match=r"record_events=True: 1 scoring workers .* set scoring_workers to 0"):
        TPPOConfig().update_from_dict(
            {
                "env": "tppo_rl/ArithmeticChain-v0",
                "policy_model": "tppo_rl/arithmetic-chain",
                "scoring_workers": 1,
                "record_events": True,
            }
        ).validate()
