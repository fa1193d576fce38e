"""An asynchronous run is made again from the order of its events, to the last bit."""

from __future__ import annotations

import json
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


@pytest.mark.parametrize("updates", [6, pytest.param(50, marks=pytest.mark.slow)])
def test_two_env_runners_are_replayed_to_the_last_bit(updates: int, tmp_path: Path) -> None:
    recorded(tmp_path / "run", updates)
    found = list(replay(tmp_path / "run", tmp_path / "replay", None))
    assert found == [(number, True) for number in range(1, updates + 1)]
    # The rollouts, of which a run keeps a part, are far larger than the events.
    events = (tmp_path / "run" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    size = sum(len(line) for line in events[1:])
    rollouts = sum(file.stat().st_size for file in (tmp_path / "run" / "rollouts").glob("*.parquet"))
    assert size < 0.05 * rollouts

    lines = [json.loads(line) for line in events]
    lines[3]["weights"] += 1
    (tmp_path / "run" / "events.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    with pytest.raises(RunError, match="the weights differ after update 3, and were equal before"):
        report(*first_difference(replay(tmp_path / "run", tmp_path / "again", 4)))


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
