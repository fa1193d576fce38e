"""PPO, VAPO, GRPO and DAPO beside T-PPO, on real vLLM and real Ray."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.registry import get_trainable_cls
from tppo_rl.algorithms.tppo_config import TPPOConfig
from tppo_rl.config.presets import PRESETS

import tppo_rl.algorithms
from tppo_rl.algorithms.dapo import DAPO, DAPOConfig
from tppo_rl.algorithms.grpo import GRPOConfig
from tppo_rl.algorithms.ppo import PPOConfig
from tppo_rl.algorithms.tppo import TPPO
from tppo_rl.algorithms.vapo import VAPOConfig
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError
from tppo_rl.core.metric_table import METRICS

KNOWN_METRICS = {metric.name for metric in METRICS}


def small(config: TPPOConfig, folder: Path, *, num_env_runners: int = 0, **options: Any) -> TPPOConfig:
    values = {
        "env": "tppo_rl/ArithmeticChain-v0",
        "policy_model": "tppo_rl/arithmetic-chain",
        "num_env_runners": num_env_runners,
        "num_envs_per_env_runner": 16,
        "max_response_length": 96,
        "max_prompt_length": 120,
        "lr": 1e-4,
        "evaluation_duration": 20,
        "results_folder": str(folder),
        "seed": 5,
    }
    critic = {} if config.critic is None else {"critic_lr": 5e-4}
    return config.update_from_dict(values | critic | options)


def losses(algorithm: TPPO, iterations: int) -> list[tuple[float, ...]]:
    rows = []
    for _ in range(iterations):
        result = algorithm.train()
        learner = result["learners"][DEFAULT_MODULE_ID]
        rows.append(
            tuple(learner[name] for name in ("policy_loss", "value_loss", "policy_grad_norm", "trained_tokens"))
        )
        assert result["tokens"]["in_flight"] == result["tokens"]["queued"] == 0
    return rows


def test_ppo_is_tppo_in_sync_mode_with_a_window_of_the_cap(tmp_path: Path) -> None:
    rows = []
    for config in (
        small(TPPOConfig(), tmp_path / "tppo", mode="sync", window_length=96),
        small(PPOConfig(), tmp_path / "ppo"),
    ):
        algorithm = config.build_algo()
        rows.append(losses(algorithm, 3))
        assert 0 < algorithm._accounts.slot_occupancy < 0.95, "slots wait for the longest response"
        algorithm.stop()
    assert rows[0] == rows[1]
    assert len({row[0] for row in rows[0]}) == 3


def assert_adds_up(algorithm: TPPO, result: dict[str, Any]) -> None:
    tokens = result["tokens"]
    assert tokens["sampled"] == tokens["trained"] + sum(tokens["dropped_by_reason"].values())
    assert result["mismatch"]["ratio_deviation_max"] <= 1e-4


def test_groups_are_complete_and_there_is_no_critic(tmp_path: Path) -> None:
    algorithm = small(GRPOConfig(), tmp_path, group_size=4).build_algo()
    for _ in range(2):
        result = algorithm.train()
        assert_adds_up(algorithm, result)
        assert result["rollout"]["complete_groups"] == 4
        assert result["rollout"]["finished_episodes"] == 16
    module = algorithm.learner_group._learner.module[DEFAULT_MODULE_ID]
    assert module.critic is None
    assert [name for name in module.state_dict() if "critic" in name] == []
    assert module.reference is not None, "GRPO has a KL term"
    assert result["policy"]["reference_kl"] > 0, "the policy has moved from its reference"
    assert list(algorithm.learner_group.get_state()["learner"]["optimizer"]) == [f"{DEFAULT_MODULE_ID}_policy"]
    assert "critic" not in result or not result["critic"].get("loss")
    algorithm.stop()


@pytest.mark.slow
def test_dynamic_sampling_counts_what_it_drops(tmp_path: Path) -> None:
    config = small(DAPOConfig(), tmp_path, num_env_runners=1, group_size=4, dynamic_sampling_max_rounds=20)
    algorithm = config.build_algo()
    dropped = 0
    for _ in range(3):
        result = algorithm.train()
        assert_adds_up(algorithm, result)
        groups = result["rollout"]["complete_groups"]
        without = groups * result["rollout"]["zero_variance_fraction"]
        assert groups - without == pytest.approx(4), "the batch is full of groups that teach something"
        dropped += without
        assert -2.0 <= result["rollout"]["return_mean"] <= 1.0
    assert set(result["tokens"]["dropped_by_reason"]) == ({"no_variance"} if dropped else set())
    assert dropped > 0
    checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()

    restored = config.copy().build_algo()
    restored.restore_from_path(checkpoint)
    again = restored.train()
    assert_adds_up(restored, again)
    assert again["tokens"]["sampled"] > result["tokens"]["sampled"]
    assert isinstance(restored, DAPO)
    restored.stop()


@pytest.mark.slow
def test_vapo_with_two_learners(tmp_path: Path) -> None:
    config = small(
        VAPOConfig(),
        tmp_path,
        group_size=4,
        critic_warmup_updates=1,
        lambda_alpha=1.0,
        num_learners=2,
        num_cpus_per_learner=0.5,
        advantage_normalization="whiten",
        advantage_normalization_scope="group",
    )
    algorithm = config.build_algo()
    for _ in range(2):
        result = algorithm.train()
        assert_adds_up(algorithm, result)
    assert result["policy"]["positive_lm_loss"] > 0
    assert set(result["policy"]) <= {name.split("/")[1] for name in KNOWN_METRICS if name.startswith("policy/")}
    algorithm.stop()


def test_hindsight_and_held_episodes_survive_a_checkpoint(tmp_path: Path) -> None:
    options = {
        "window_length": 8,
        "mode": "sync",
        "hindsight": True,
        "value_batch_tokens": 10**6,
        "boundary_value": "tail_corrected",
    }
    config = small(TPPOConfig(), tmp_path, **options)
    algorithm = config.build_algo()
    seen = 0.0
    for _ in range(5):
        result = algorithm.train()
        seen += result["hindsight"]["tokens"]
        tokens = result["tokens"]
        assert tokens["trained"] == result["training_iteration"] * 16 * 8, "the second training is not counted"
        assert result["staleness"]["max"] == 0, "nor does it count as stale"
    assert seen > 0
    due, held = len(algorithm._hindsight.due), algorithm._ask_learners(lambda learner: learner.held_episodes())
    assert held[0].num_rows > 0
    assert "loss" not in result["critic"], "the value batch is not full"
    checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    restored = config.copy().build_algo()
    restored.restore_from_path(checkpoint)
    assert len(restored._hindsight.due) == due
    assert restored._ask_learners(lambda learner: learner.held_episodes())[0].equals(held[0])
    restored.stop()


@pytest.mark.slow
def test_a_checkpoint_of_sharded_learners_goes_on_with_one(tmp_path: Path) -> None:
    sharded = {"num_learners": 2, "num_cpus_per_learner": 0.5, "distributed": "fsdp", "gradient_checkpointing": True}
    options = {"group_size": 4, "group_scale": False}
    algorithm = small(GRPOConfig(), tmp_path / "fsdp", **options, **sharded).build_algo()
    for _ in range(2):
        result = algorithm.train()
        assert_adds_up(algorithm, result)
    checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    expected = algorithm.evaluate()["greedy"]
    algorithm.stop()
    restored = small(GRPOConfig(), tmp_path / "ddp", **options).build_algo()
    restored.restore_from_path(checkpoint)
    assert restored.evaluate()["greedy"] == expected
    assert_adds_up(restored, restored.train())
    restored.stop()


@pytest.mark.parametrize("name", PRESETS)
def test_names_lead_to_classes(name: str) -> None:
    algorithm = tppo_rl.algorithms.algorithm_class(name)
    config = getattr(tppo_rl.algorithms, f"{name}Config")
    assert algorithm.__name__ == name
    assert type(algorithm.get_default_config()) is config
    assert config.algorithm == name
    assert config().algo_class is algorithm
    assert tuple(PRESETS) == tppo_rl.algorithms.ALGORITHMS
    if name != "PPO":
        assert get_trainable_cls(name) is algorithm


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PPOConfig, {"window_length": 8}, "window_length=8: PPO has window_length=None"),
        (PPOConfig, {"mode": "async"}, "mode='async': PPO has mode='sync'"),
        (GRPOConfig, {"critic": "separate"}, "critic='separate': GRPO has critic=None"),
        (GRPOConfig, {"group_size": 5}, "group_size=5: a step has 16 slots"),
        (DAPOConfig, {"critic_warmup_updates": 3}, "critic_warmup_updates=3: is read only with a critic"),
    ],
)
def test_what_makes_an_algorithm_cannot_be_changed(
    tmp_path: Path, config: type[TPPOConfig], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        small(config(), tmp_path, **options).validate()


def test_every_option_has_a_place_in_the_builder() -> None:
    methods = ("environment", "language_model", "env_runners", "learners", "training", "pipeline", "evaluation")
    methods += ("debugging", "reporting")
    arguments = {
        name
        for method in methods
        for host in (TPPOConfig, AlgorithmConfig)
        if hasattr(host, method)
        for name in inspect.signature(getattr(host, method)).parameters
    }
    # The folder is the runner's or Tune's business.
    assert set(Options.model_fields) - arguments == {"results_folder"}


def test_the_builder_sets_what_it_is_given() -> None:
    config = TPPOConfig()
    for method in ("language_model", "env_runners", "learners", "training", "pipeline", "reporting"):
        for name in set(inspect.signature(getattr(TPPOConfig, method)).parameters) & set(Options.model_fields):
            value = object()
            getattr(config, method)(**{name: value})
            assert getattr(config, name) is value, f"{method}({name}=…)"
