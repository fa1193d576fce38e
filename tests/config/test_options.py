from pathlib import Path
from typing import Any

import pytest

from tppo_rl.config.checks import (
    check_attention,
    check_environment,
    check_model,
    check_options,
    check_parallel_critic,
    rllib_keys,
    vllm_engine_args,
)
from tppo_rl.config.options import Options
from tppo_rl.core.errors import OptionError

OPTION_NAMES = {
    "env", "env_config", "policy_model", "critic", "dtype", "weights_dtype", "num_env_runners", "num_envs_per_env_runner",
    "window_length", "max_response_length", "max_prompt_length", "sampling", "engine", "engine_steps_per_sample",
    "num_learners", "distributed", "gradient_checkpointing", "lr", "critic_lr", "lr_warmup_updates", "adam_betas", "weight_decay", "gamma", "lambda_",
    "boundary_value", "clip_low", "clip_high", "off_policy_correction", "train_batch_size_per_learner",
    "minibatch_size", "micro_batch_tokens", "num_epochs", "critic_num_epochs", "critic_minibatch_size",
    "critic_warmup_updates", "grad_clip", "critic_grad_clip", "mode", "max_staleness", "kv_on_update",
    "log_prob_diff_alarm", "evaluation_interval", "evaluation_interval_unit", "evaluation_duration", "evaluation_num_env_runners", "seed",
    "rollout_log_fragments", "results_folder",
    "reference_model", "group_size", "dynamic_sampling", "dynamic_sampling_max_rounds", "rewards", "overlong_fraction",
    "advantage_estimator", "lambda_alpha", "hindsight", "advantage_normalization", "advantage_normalization_scope",
    "group_scale", "critic_targets", "critic_lambda", "value_batch_tokens", "dual_clip", "loss_aggregation", "value_clip",
    "entropy_coef", "kl_coef", "kl_estimator", "kl_in", "positive_lm_coef", "importance_cap", "sequence_mask",
    "lora", "attention", "packing", "context_gradient", "context_cache_tokens", "critic_layers", "parallel_critic",
    "policy_token_fraction", "unfinished_advantage_scale",
}  # fmt: skip

MODEL = {"policy_model": "tppo_rl/arithmetic-chain"}


def test_the_options_are_these_and_all_are_described() -> None:
    assert set(Options.model_fields) == OPTION_NAMES
    assert all(field.description for field in Options.model_fields.values())


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"windw_length": 3}, ["windw_length=3", "did you mean window_length"]),
        ({"window_length": "abc"}, ["window_length='abc'", "integer"]),
        ({"window_length": 0}, ["window_length=0", "greater than 0"]),
        ({"window_length": True}, ["window_length=True", "integer"]),
        (
            {"window_length": 300, "max_response_length": 256},
            ["window_length=300", "max_response_length=256", "or less"],
        ),
        ({"lr": "1e-4x"}, ["lr='1e-4x'", "number"]),
        ({"lr": -1.0}, ["lr=-1.0", "greater than 0"]),
        ({"lr": [[0, 1e-4]]}, ["lr=[[0", "two or more pairs [trained tokens, rate]"]),
        ({"lr": [[0, 1e-4], [100]]}, ["lr=[[0", "two or more pairs"]),
        ({"lr": [[10, 1e-4], [100, 1e-5]]}, ["lr=[[10", "begins at 0 tokens, not at 10"]),
        ({"critic_lr": [[0, 1e-4], [100, 1e-5], [100, 1e-6]]}, ["critic_lr=[[0", "100 follows 100"]),
        ({"critic_lr": [[0, 1e-4], [100, -1e-5]]}, ["critic_lr=[[0", "-1e-05 is below 0"]),
        ({"lr": [[0, "1e-4x"], [1, 1]]}, ["lr=[[0", "number"]),
        ({"lr": [1, 2]}, ["lr=[1, 2]", "number", "list"]),
        ({"mode": "asink"}, ["mode='asink'", "'async' or 'sync'"]),
        ({"boundary_value": "holt"}, ["boundary_value='holt'", "'hold', 'bootstrap' or 'tail_corrected'"]),
        ({"max_staleness": 0}, ["max_staleness=0", "set max_staleness to 1"]),
        ({"num_env_runners": 0}, ["num_env_runners=0", "mode to 'sync'"]),
        ({"off_policy_correction": "none"}, ["off_policy_correction='none'", "set it to 'behavior'"]),
        ({"distributed": "fsdp"}, ["distributed='fsdp'", "num_learners=0", "num_learners to 2", "'ddp'"]),
        ({"distributed": "fsdp", "num_learners": 1}, ["distributed='fsdp'", "num_learners=1"]),
        ({"weights_dtype": "bfloat16"}, ["weights_dtype='bfloat16'", "dtype='float32'", "set dtype to 'bfloat16'"]),
        ({"sampling": {"top_p": 0.9}}, ["sampling.top_p=0.9", "remove the key"]),
        ({"sampling": {"temperature": 0}}, ["sampling.temperature=0", "above 0"]),
        ({"lora": {"alpha": 8}}, ["lora.rank=None", "set it"]),
        ({"lora": {"rank": 0}}, ["lora.rank=0", "above 0"]),
        ({"lora": {"rank": 8, "alpha": -1}}, ["lora.alpha=-1", "leave it out for 16"]),
        ({"lora": {"rank": 8, "dropout": 0.1}}, ["lora.dropout=0.1", "remove the key"]),
        ({"lora": {"rank": 8, "target_modules": "q_proj"}}, ["lora.target_modules='q_proj'", "['q_proj', 'v_proj']"]),
        ({"engine": {"linear": "fast"}}, ["engine.linear='fast'", "'in_place' or 'packed'"]),
        ({"engine": {"device": "tpu"}}, ["engine.device='tpu'", "'cpu' or 'cuda'"]),
        ({"engine": {"max_num_batched_token": 1}}, ["engine.max_num_batched_token=1", "max_num_batched_tokens"]),
    ],
)
def test_a_bad_option_is_named_with_its_value_and_remedy(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        check_options(values)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value), "one mistake, one line"


def test_good_options_pass_and_get_their_defaults() -> None:
    options = check_options(
        {"lr": 1, "engine": {"max_num_batched_tokens": 64}, "framework": "torch"}, other_keys=["framework"]
    )
    assert options.window_length == Options.model_fields["window_length"].default
    assert check_options({"distributed": "fsdp", "num_learners": 2}).distributed == "fsdp"
    assert check_options({"weights_dtype": "bfloat16", "dtype": "bfloat16"}).weights_dtype == "bfloat16"
    assert check_options({"mode": "sync", "num_env_runners": 0, "off_policy_correction": "none"}).mode == "sync"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["policy_model=None", "tppo_rl/arithmetic-chain"]),
        ({"policy_model": "./nowhere"}, ["policy_model='./nowhere'", "no such folder"]),
        (MODEL | {"critic": "/nowhere/at/all"}, ["critic='/nowhere/at/all'", "no such folder"]),
        (MODEL | {"critic_layers": 9}, ["critic_layers=9", "'tppo_rl/arithmetic-chain' has 4", "null"]),
        (MODEL | {"max_response_length": 5000}, ["max_response_length=5000", "holds 1024", "or less"]),
    ],
)
def test_a_model_that_will_not_do_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        check_model(check_options(values))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_schedule_may_have_rllibs_tuples() -> None:
    assert check_options({"lr": [(0, 1e-4), (1000, 1e-5)]}).lr == [(0, 1e-4), (1000, 1e-5)]


def test_a_critic_beside_the_policy_needs_no_gpu() -> None:
    check_parallel_critic(check_options({"parallel_critic": True}), num_gpus_per_learner=0)
    check_parallel_critic(check_options({}), num_gpus_per_learner=1)
    with pytest.raises(OptionError, match=r"^parallel_critic=True: num_gpus_per_learner=1"):
        check_parallel_critic(check_options({"parallel_critic": True}), num_gpus_per_learner=1)


@pytest.mark.parametrize(
    ("values", "gpus", "installed", "words"),
    [
        ({"attention": "flash_attention_2"}, 1, False, ["flash-attn is not installed", "'sdpa'"]),
        ({"attention": "flash_attention_2"}, 1, True, ["dtype='float32'", "'bfloat16'"]),
        ({"attention": "flex_attention"}, 0, True, ["num_gpus_per_learner=0", "set num_gpus_per_learner to 1"]),
    ],
)
def test_attention_that_cannot_run_is_refused(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], gpus: int, installed: bool, words: list[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object() if installed else None)
    with pytest.raises(OptionError) as error:
        check_attention(check_options(values), num_gpus_per_learner=gpus)
    assert all(word in str(error.value) for word in [f"attention={values['attention']!r}", *words]), str(error.value)
    check_attention(check_options({"attention": "sdpa", "packing": True}), num_gpus_per_learner=0)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no config\.json"):
        check_model(check_options({"policy_model": str(tmp_path)}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["env=None"]),
        ({"env": "tppo_rl/ArithmeticChian-v0"}, ["ArithmeticChian", "did you mean tppo_rl/ArithmeticChain-v0"]),
        ({"env": "no_such_module:Env-v0"}, ["no_such_module", "importable"]),
        ({"env": "tppo_rl/ArithmeticChain-v0", "env_config": {"max_operand": 3}}, ["env_config", "max_operand"]),
        ({"env": "tppo_rl/ArithmeticChain-v0", "env_config": {"max_operands": -3}}, ["max_operands=-3"]),
        ({"env": "tppo_rl/ArithmeticChain-v0", "env_config": {"split": "train"}}, ["env_config.split", "remove"]),
        ({"env": "tppo_rl/ReasoningGym-v0", "env_config": {"task": "chain_summ"}}, ["chain_summ", "chain_sum"]),
    ],
)
def test_an_environment_that_will_not_do_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        check_environment(check_options(values))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_keys_read_from_sources_are_those_of_the_classes() -> None:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    assert rllib_keys() == set(vars(AlgorithmConfig()))
    assert {"max_num_batched_tokens", "enforce_eager", "gpu_memory_utilization"} <= vllm_engine_args()
