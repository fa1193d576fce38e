"""Models of the families that users bring: three updates on real vLLM, weights that arrive, turns that end as theirs do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, make_family

from tppo_rl.algorithms import TPPOConfig

IN_EVERY_RUN = {"gemma2", "qwen3_moe"}
"""A tied output layer with scaled logits, and experts that transformers keeps in one tensor."""


def config_of(name: str, folder: Path, results: Path) -> TPPOConfig:
    base = {"prompt_template": "{prompt}"} if FAMILIES[name].template is None else {}
    return (
        TPPOConfig()
        .environment("tppo_rl/ArithmeticChain-v0")
        .language_model(str(folder), **base)
        .env_runners(
            num_env_runners=1,
            num_envs_per_env_runner=16,
            window_length=16,
            max_response_length=128,
            max_prompt_length=256,
        )
        .training(lr=1e-3, critic_lr=1e-3, train_batch_size_per_learner=256)
        .evaluation(evaluation_interval=100, evaluation_duration=32)
        .debugging(seed=0)
        .update_from_dict({"results_folder": str(results)})
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.integration if name in IN_EVERY_RUN else pytest.mark.slow)
        for name in FAMILIES
    ],
)
def test_a_family_trains(name: str, tmp_path: Path) -> None:
    algorithm: Any = config_of(name, make_family(name, tmp_path / "model"), tmp_path / "run").build_algo()
    try:
        for _ in range(3):
            result = algorithm.train()
        mean = result["run"]["largest_fresh_log_prob_diff"]
        print(
            f"{name}: largest difference of log-probs {mean:.1e}, probe {result['mismatch']['probe_log_prob_diff']:.1e}"
        )
        assert mean <= 1e-5
        assert result["mismatch"]["probe_log_prob_diff"] <= 1e-5
        assert result["heldout_latest"]["sampled"]["truncated"] < 1
    finally:
        algorithm.stop()
