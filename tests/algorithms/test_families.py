"""Models of the families that users bring: three updates on real vLLM, weights that arrive, turns that end as theirs do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from families import FAMILIES, make_family
from transformers import AutoTokenizer

from tppo_rl.algorithms import TPPOConfig
from tppo_rl.core.errors import OptionError

IN_EVERY_RUN = {("qwen3_moe", "in_place")}
"""Experts that transformers keeps in one tensor, as most that differs from one family to the next does."""


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
        .evaluation(evaluation_interval=None)
        .debugging(seed=0)
        .update_from_dict({"results_folder": str(results)})
    )


@pytest.mark.parametrize(
    ("name", "linear"),
    [
        pytest.param(
            name, linear, marks=pytest.mark.integration if (name, linear) in IN_EVERY_RUN else pytest.mark.slow
        )
        for name in FAMILIES
        for linear in ("in_place", "packed")
    ],
)
def test_a_family_trains(name: str, linear: str, tmp_path: Path) -> None:
    folder = make_family(name, tmp_path / "model")
    config = config_of(name, folder, tmp_path / "run").env_runners(engine={"linear": linear})
    algorithm: Any = config.build_algo()
    try:
        results = [algorithm.train() for _ in range(3)]
        # The proof of weights is due after the first update.
        probe = results[0]["mismatch"]["probe_log_prob_diff"]
        largest = results[-1]["run"]["largest_fresh_log_prob_diff"]
        print(f"{name}: log-probs of engine and trainer differ by {largest:.1e} nats at most, {probe:.1e} on the probe")
        assert probe <= 1e-5
        assert largest <= 1e-4
        # Of tokens that the trainer's own weights sampled: the policy moves, so older ones differ.
        fresh = [result["mismatch"].get("fresh_log_prob_diff_mean") for result in results]
        assert max(mean for mean in fresh if mean is not None) <= 1e-5
        assert AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(FAMILIES[name].end_of_turn) in _ends(
            algorithm
        )
    finally:
        algorithm.stop()


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "head"), [("bfloat16", None), ("float16", None), ("bfloat16", "float32")])
def test_a_family_trains_in_half_precision(name: str, dtype: str, head: str | None, tmp_path: Path) -> None:
    config = config_of(name, make_family(name, tmp_path / "model"), tmp_path / "run")
    if dtype == "float16" and name.startswith("gemma"):
        with pytest.raises(OptionError, match=r"dtype='float16': .*'bfloat16'"):
            config.language_model(dtype=dtype).validate()
        return
    algorithm: Any = config.language_model(dtype=dtype, head_dtype=head).build_algo()
    try:
        results = [algorithm.train() for _ in range(3)]
        probe = results[0]["mismatch"]["probe_log_prob_diff"]
        fresh = [result["mismatch"].get("fresh_log_prob_diff_mean") for result in results]
        mean = max(value for value in fresh if value is not None)
        print(f"{name} {dtype} {head}: log-probs differ by {mean:.1e} nats on average, {probe:.1e} on the probe")
        assert mean <= {"bfloat16": 0.05, "float16": 0.01}[dtype]
        assert results[-1]["learners"]["default_policy"]["policy_skipped_steps"] == 0
    finally:
        algorithm.stop()


def _ends(algorithm: Any) -> set[int]:
    """Last tokens of held-out answers that ended by themselves."""
    episodes = algorithm.evaluator._answers(algorithm.env_runner_group, "sampled", 1.0, 64)
    return {int(episode.tokens[-1]) for episode in episodes if episode.terminated}
