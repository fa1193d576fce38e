"""A synchronous run that was stopped and resumed is the run that was not, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tppo_rl.algorithms import GRPOConfig, PPOConfig, TPPOConfig
from tppo_rl.algorithms.rllib_config import LanguageModelConfig

pytestmark = pytest.mark.integration

OF_THE_MACHINE = (
    "time",
    "seconds",
    "throughput",
    "wall",
    "timer",
    "_s",
    "util_percent",
    "idle",
    "weight_load",
    "probe_log_prob_diff",
)
"""Parts of names of what clocks and the machine give, and of the proof of weights, which a restored run makes once more."""


def config_of(kind: type[LanguageModelConfig], folder: Path, **options: Any) -> LanguageModelConfig:
    values = {
        "policy_model": "tppo_rl/arithmetic-chain-long-tail",
        "env": "tppo_rl/ArithmeticChain-v0",
        "env_config": {"max_operands": 12, "tail_exponent": 4.0, "long_share": 1.0},
        "mode": "sync",
        "num_env_runners": 0,
        "num_envs_per_env_runner": 8,
        "max_response_length": 96,
        "max_prompt_length": 128,
        "lr": 1e-4,
        "evaluation_interval": 2,
        "evaluation_duration": 16,
        "results_folder": str(folder),
        "seed": 3,
    }
    return kind().update_from_dict(values | options)


def numbers(tree: Any, path: str = "") -> dict[str, Any]:
    """All numbers of a nested result but those of clocks and of the machine."""
    if isinstance(tree, dict):
        found: dict[str, Any] = {}
        for key, value in tree.items():
            if not any(clock in str(key) for clock in OF_THE_MACHINE):
                found |= numbers(value, f"{path}/{key}")
        return found
    return {path: tree} if isinstance(tree, int | float | np.generic) else {}


def different(expected: dict[str, Any], found: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    both = {name: (expected.get(name), found.get(name)) for name in expected.keys() | found.keys()}
    return {name: (a, b) for name, (a, b) in both.items() if a != b and not (_is_nan(a) and _is_nan(b))}


def _is_nan(value: Any) -> bool:
    return value is not None and bool(np.isnan(value))


def arrays(tree: Any, path: str = "") -> dict[str, np.ndarray]:
    if isinstance(tree, dict):
        return {key: value for name, part in tree.items() for key, value in arrays(part, f"{path}/{name}").items()}
    return {path: np.asarray(tree)} if isinstance(tree, np.ndarray) else {}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (TPPOConfig, {"window_length": 8}),
        pytest.param(
            GRPOConfig,
            {"group_size": 4, "partial_rollouts": True, "max_staleness": 3, "train_batch_size_per_learner": 200},
            marks=pytest.mark.slow,
        ),
        pytest.param(PPOConfig, {}, marks=pytest.mark.slow),
        pytest.param(GRPOConfig, {"group_size": 4}, marks=pytest.mark.slow),
        pytest.param(
            TPPOConfig,
            {"window_length": 8, "critic": "shared", "critic_warmup_responses": 30, "critic_warmup_slope": 0.1},
            marks=pytest.mark.slow,
        ),
        pytest.param(TPPOConfig, {"window_length": 8, "hindsight": True, "num_env_runners": 2}, marks=pytest.mark.slow),
    ],
)
def test_straight_and_resumed_are_equal(
    kind: type[LanguageModelConfig], options: dict[str, Any], tmp_path: Path
) -> None:
    straight = config_of(kind, tmp_path / "straight", **options).build_algo()
    first = [straight.train() for _ in range(3)]
    checkpoint = straight.save_to_path(str(tmp_path / "checkpoint"))
    expected = [straight.train() for _ in range(3)]
    state = straight.get_state()
    straight.stop()
    resumed = kind.algorithm_class().from_checkpoint(checkpoint)
    for result in expected:
        again = resumed.train()
        assert different(numbers(result), numbers(again)) == {}
        assert again["time_total_s"] > first[-1]["time_total_s"] + again["time_since_restore"] - 1e-6
    assert first[-1]["training_iteration"] == 3
    assert ("warmup_responses" in first[0]["critic"]) == ("critic_warmup_responses" in options)
    found = resumed.get_state()
    resumed.stop()
    before, after = arrays(state), arrays(found)
    assert before.keys() == after.keys()
    assert [name for name, value in before.items() if not np.array_equal(value, after[name])] == []
    assert found["tppo"]["ledger"]["begun"].equals(state["tppo"]["ledger"]["begun"])
    assert all(found["tppo"][key].equals(state["tppo"][key]) for key in ("queue", "grouped"))


@pytest.mark.parametrize(
    ("kind", "options"),
    [(GRPOConfig, {"group_size": 4}), pytest.param(PPOConfig, {"num_env_runners": 2}, marks=pytest.mark.slow)],
)
def test_partial_rollouts_without_staleness_are_synchronous_training(
    kind: type[LanguageModelConfig], options: dict[str, Any], tmp_path: Path
) -> None:
    """Batches, weights and metrics are the same, where a request is as long as the cap so that both make the same requests."""
    partial = {"partial_rollouts": True, "max_staleness": 0, "train_batch_size_per_learner": 1}
    states = []
    for more in ({}, partial | {"engine_steps_per_sample": 96}):
        algorithm = config_of(kind, tmp_path / str(len(more)), **options, **more).build_algo()
        results = [numbers(algorithm.train()) for _ in range(4)]
        states.append((results, arrays(algorithm.get_state())))
        algorithm.stop()
    for one, other in zip(states[0][0], states[1][0], strict=True):
        # Alone where slots can be refilled, empty ones are a sign.
        options_differ = {name for name in different(one, other) if name.startswith("/config/")}
        assert different(one, other).keys() - options_differ == {"/alarm/slot_occupancy"}
    assert [name for name, value in states[0][1].items() if not np.array_equal(value, states[1][1][name])] == []
