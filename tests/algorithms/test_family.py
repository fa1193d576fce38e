"""PPO, VAPO, GRPO and DAPO beside T-PPO, on real vLLM and real Ray."""

from __future__ import annotations

import inspect
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.tune.registry import get_trainable_cls

import tppo_rl
import tppo_rl.algorithms
from tppo_rl.algorithms import DAPO, DAPOConfig, GRPOConfig, PPOConfig, TPPOConfig, VAPOConfig
from tppo_rl.algorithms.builder import METHODS, option_keys
from tppo_rl.algorithms.language_model_algorithm import LanguageModelAlgorithm
from tppo_rl.algorithms.rllib_classes import rllib_classes
from tppo_rl.algorithms.rllib_config import LanguageModelConfig
from tppo_rl.config.options import OPTIONS, algorithm_spec
from tppo_rl.core.errors import OptionError
from tppo_rl.core.metric_table import METRICS
from tppo_rl.core.registry import ALGORITHMS

pytestmark = pytest.mark.integration

KNOWN_METRICS = {metric.name for metric in METRICS}


def small(
    config: LanguageModelConfig, folder: Path, *, num_env_runners: int = 0, **options: Any
) -> LanguageModelConfig:
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


def losses(algorithm: LanguageModelAlgorithm, iterations: int) -> list[tuple[float, ...]]:
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
        assert 0 < algorithm.loop.recorder.totals.slot_occupancy < 0.95, "slots wait for the longest response"
        algorithm.stop()
    assert rows[0] == rows[1]
    assert len({row[0] for row in rows[0]}) == 3


def assert_adds_up(algorithm: LanguageModelAlgorithm, result: dict[str, Any]) -> None:
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
    due, held = len(algorithm.loop.boundaries.waiting), algorithm.loop.learners.held_episodes()
    assert held.num_rows > 0
    assert "loss" not in result["critic"], "the value batch is not full"
    checkpoint = algorithm.save_to_path(str(tmp_path / "checkpoint"))
    algorithm.stop()
    restored = config.copy().build_algo()
    restored.restore_from_path(checkpoint)
    assert len(restored.loop.boundaries.waiting) == due
    assert restored.loop.learners.held_episodes().equals(held)
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


@pytest.mark.parametrize("name", ALGORITHMS)
def test_names_lead_to_classes(name: str) -> None:
    spec = algorithm_spec(name)
    algorithm, config = rllib_classes(spec)
    for package in (tppo_rl, tppo_rl.algorithms, import_module(f"tppo_rl.algorithms.{name.lower()}")):
        assert getattr(package, name) is algorithm
        assert getattr(package, f"{name}Config") is config
    assert (algorithm.__name__, config.__name__) == (name, f"{name}Config")
    assert type(algorithm.get_default_config()) is config
    assert config.spec is spec
    assert config().algo_class is algorithm
    assert pickle.loads(pickle.dumps(algorithm)) is algorithm
    if name != "PPO":
        assert get_trainable_cls(name) is algorithm


@pytest.mark.parametrize(
    ("config", "options", "message"),
    [
        (PPOConfig, {"window_length": 8}, "window_length=8: PPO has window_length=None"),
        (GRPOConfig, {"critic": "separate"}, "critic='separate': GRPO has critic=None"),
        (GRPOConfig, {"group_size": 5}, "group_size=5: a step has 16 slots"),
        (DAPOConfig, {"critic_warmup_updates": 3}, "critic_warmup_updates=3: is read only with a critic"),
    ],
)
def test_what_makes_an_algorithm_cannot_be_changed(
    tmp_path: Path, config: type[LanguageModelConfig], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(OptionError, match=message):
        small(config(), tmp_path, **options).validate()


def test_every_option_has_a_place_in_the_builder() -> None:
    of_rllib = {
        name
        for method in ("environment", "debugging")
        for name in inspect.signature(getattr(AlgorithmConfig, method)).parameters
    }
    ours = [key for method in METHODS for key in option_keys(method)]
    assert len(ours) == len(set(ours))
    assert set(ours) | of_rllib >= set(OPTIONS)


@pytest.mark.parametrize("method", METHODS)
def test_the_builder_sets_what_it_is_given(method: str) -> None:
    config = TPPOConfig()
    for key in option_keys(method):
        of_rllib = key in vars(AlgorithmConfig())
        value = 3 if of_rllib else object()
        assert getattr(config, method)(**{key: value}) is config
        assert getattr(config, key) is value, f"{method}({key}=…)"
        assert f"{key}: {OPTIONS[key].description}" in getattr(TPPOConfig, method).__doc__
    with pytest.raises(OptionError, match=rf"^{option_keys(method)[0]}x=1: unknown option, did you mean"):
        getattr(config, method)(**{f"{option_keys(method)[0]}x": 1})


def test_the_builder_takes_old_names_and_the_model_alone(caplog: pytest.LogCaptureFixture) -> None:
    config = TPPOConfig().training(loss_mean="response").language_model("a/model")
    config.policy_token_share = 0.5
    options = config.options
    assert (options.policy_loss.loss_aggregation, options.models.policy_model) == ("response", "a/model")
    assert options.optimizer.policy_token_fraction == 0.5
    assert "loss_mean is now called loss_aggregation" in caplog.text
    with pytest.raises(TypeError, match="by keyword"):
        config.training(1e-4)


@pytest.mark.parametrize(
    ("name", "options"),
    [("GSPO", {"group_size": 4}), ("CISPO", {"group_size": 4, "policy_loss": {"type": "cispo", "cap": 1.01}})],
)
def test_losses_that_came_through_the_door(tmp_path: Path, name: str, options: dict[str, Any]) -> None:
    algorithm = small(rllib_classes(algorithm_spec(name))[1](), tmp_path, num_epochs=2, lr=1e-3, **options).build_algo()
    for _ in range(2):
        result = algorithm.train()
        assert_adds_up(algorithm, result)
    measured = "sequence_ratio" if name == "GSPO" else "cap_fraction"
    assert 0 < result["policy"][measured] < 2
    algorithm.stop()
