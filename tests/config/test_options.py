import json
import logging
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from data_sets import write_lines
from safetensors.numpy import save_file

from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.config.checks import (
    check_environment,
    check_model,
    check_options,
)
from tppo_rl.config.foreign_sources import rllib_defaults, rllib_keys, vllm_engine_args
from tppo_rl.config.options import OPTIONS, SECTIONS, Options
from tppo_rl.core.errors import OptionError, OptionWarning

OPTION_NAMES = {
    "env", "env_config", "policy_model", "critic", "critic_lora", "dtype", "head_dtype", "weights_dtype", "num_env_runners", "num_envs_per_env_runner",
    "window_length", "max_response_length", "max_prompt_length", "sampling", "engine", "engine_steps_per_sample",
    "num_learners", "distributed", "gradient_checkpointing", "lr", "critic_lr", "lr_warmup_updates", "adam_betas", "weight_decay", "gamma", "lambda_",
    "boundary_value", "clip_low", "clip_high", "off_policy_correction", "train_batch_size_per_learner",
    "minibatch_size", "micro_batch_tokens", "num_epochs", "critic_num_epochs", "critic_minibatch_size",
    "critic_warmup_updates", "critic_warmup_responses", "critic_warmup_slope", "critic_loss", "value_range", "value_bins", "critic_initial_value", "grad_clip", "critic_grad_clip", "max_skipped_updates", "mode", "partial_rollouts", "max_staleness", "max_queued_batches", "old_responses", "kv_on_update", "weight_transport",
    "log_prob_diff_alarm", "start_timeout_s", "env_runner_timeout_s", "heartbeat_timeout_s", "learner_timeout_s", "evaluation_interval", "evaluation_interval_unit", "evaluation_duration", "evaluation_num_env_runners", "seed",
    "rollout_log_fragments", "record_episodes", "record_batches", "record_events", "replay_of", "results_folder", "runtime_env", "trackers",
    "reference_model", "group_size", "dynamic_sampling", "dynamic_sampling_max_rounds", "rewards", "overlong_fraction",
    "advantage_estimator", "lambda_alpha", "hindsight", "advantage_normalization", "advantage_normalization_scope",
    "group_scale", "critic_sees_answer", "critic_targets", "critic_lambda", "value_batch_tokens", "dual_clip", "loss_aggregation", "value_clip",
    "entropy_coef", "kl_coef", "kl_estimator", "kl_in", "positive_lm_coef", "importance_cap", "sequence_mask",
    "lora", "attention", "packing", "context_gradient", "context_cache_tokens", "critic_layers", "parallel_critic",
    "policy_token_fraction", "unfinished_advantage_scale", "policy_loss", "num_cpus_per_env_runner", "num_gpus_per_env_runner",
    "placement", "gpus", "num_cpus_per_learner", "num_gpus_per_learner", "on_reward_failure", "truncated_responses", "wrong_reward",
    "max_failed_fraction", "scoring_workers", "scoring_deadline_s", "scoring_memory_gib",
    "system_prompt", "prompt_template", "chat_template_args", "end_of_turn", "stop",
}  # fmt: skip

NAN, INF = float("nan"), float("inf")
FLOATS = [
    "lr", "critic_lr", "weight_decay", "grad_clip", "critic_grad_clip", "kl_coef", "entropy_coef", "positive_lm_coef", "clip_low",
    "clip_high", "dual_clip", "importance_cap", "gamma", "lambda_alpha", "value_clip", "log_prob_diff_alarm", "start_timeout_s", "env_runner_timeout_s", "heartbeat_timeout_s",
    "num_cpus_per_env_runner", "num_gpus_per_learner", "policy_token_fraction", "overlong_fraction",
]  # fmt: skip
MODEL = {"policy_model": "tppo_rl/arithmetic-chain"}


def checked(values: dict[str, Any], *, other_keys: Iterable[str] = ()) -> Options:
    return check_options(values, SPEC, other_keys=other_keys)


def test_the_options_are_these_and_all_are_described() -> None:
    assert set(OPTIONS) == OPTION_NAMES
    assert all(option.description for option in OPTIONS.values())


def test_an_option_stands_in_one_section() -> None:
    assert sum(len(section.model_fields) for section in SECTIONS.values()) == len(OPTIONS)


def test_options_come_back_as_they_were_written() -> None:
    values = {
        "lora": {"rank": 8},
        "engine": {"max_num_seqs": 9},
        "sampling": {"temperature": 0.5},
        "policy_loss": {"type": "cispo", "cap": 4.0},
        "rewards": "zero_one",
        "lr": [[0, 1e-4], [100, 1e-5]],
    }
    flat = Options.of(values).flat()
    assert {key: flat[key] for key in values} == values
    assert Options.of(flat) == Options.of(values)
    assert set(flat) == set(OPTIONS)
    assert all(flat[key] == OPTIONS[key].default for key in set(OPTIONS) - set(values))


def test_changes_leave_the_rest() -> None:
    options = Options.of(lr=1e-3).replace(clip_low=0.1)
    assert (options.optimizer.lr, options.policy_loss.clip_low) == (1e-3, 0.1)
    with pytest.raises(OptionError, match=r"clip_lo=0\.1"):
        options.replace(clip_lo=0.1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ({"loss_mean": "token"}, {"loss_aggregation": "token"}),
        ({"advantage_normalisation": "whiten"}, {"advantage_normalization": "whiten"}),
        ({"policy_token_share": 0.5}, {"policy_token_fraction": 0.5}),
        ({"off_policy_correction": "behaviour"}, {"off_policy_correction": "behavior"}),
        ({"critic_targets": "also_truncated"}, {"critic_targets": "include_unfinished"}),
    ],
)
def test_old_names_work_with_a_warning(
    old: dict[str, Any], new: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert checked(old) == checked(new)
    assert "the old name works for one more release" in caplog.text
    if set(old) != set(new):
        with pytest.raises(OptionError, match=f"{next(iter(old))}=.*give {next(iter(new))} alone"):
            checked(old | new)


def test_the_bound_on_staleness_is_a_property() -> None:
    assert Options.of(max_staleness=3).staleness_bound == 3
    assert Options.of(max_staleness=3, mode="sync").staleness_bound == 0


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
        ({"lr": 1e30}, ["lr=1e+30", "less than or equal to 1"]),
        ({"lr": [[0, 1e-4], [100, 2.0]]}, ["lr=[[0", "the rate 2 is above 1"]),
        ({"engine": {"model_weights": "x"}}, ["engine.model_weights='x'", "set policy_model"]),
        ({"lr": -1.0}, ["lr=-1.0", "greater than or equal to 0"]),
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
        ({"engine": {"async_scheduling": True}}, ["engine.async_scheduling=True", "remove the key"]),
        ({"engine": {"pipeline_parallel_size": 2}}, ["engine.pipeline_parallel_size=2", "set tensor_parallel_size"]),
        ({"engine": {"worker_cls": "my.Worker"}}, ["engine.worker_cls='my.Worker'", "engine.worker_extension_cls"]),
        ({"engine": {"weight_transfer_config": {}}}, ["engine.weight_transfer_config={}", "remove the key"]),
        (
            {"engine": {"multiprocessing": True, "scheduler_cls": "my.Scheduler"}},
            ["engine.scheduler_cls='my.Scheduler'", "remove one of the two"],
        ),
        ({"distributed": "fsdp", "num_learners": 1}, ["distributed='fsdp'", "num_learners=1"]),
        ({"weights_dtype": "bfloat16", "dtype": "float16"}, ["weights_dtype='bfloat16'", "dtype='float16'", "scaled"]),
        ({"weights_dtype": "bfloat16"}, ["weights_dtype='bfloat16'", "dtype='float32'", "set dtype to 'bfloat16'"]),
        ({"sampling": {"top_p": 0.9}}, ["sampling.top_p=0.9", "remove the key"]),
        ({"sampling": {"temperature": 0}}, ["sampling.temperature=0", "greater than or equal to 0.01"]),
        ({"lora": {"alpha": 8}}, ["lora.rank=None", "is missing; set it", "for example 16"]),
        ({"lora": {"rank": 0}}, ["lora.rank=0", "greater than 0"]),
        ({"lora": {"rank": 8, "alpha": -1}}, ["lora.alpha=-1", "greater than 0", "None: 2 * rank"]),
        ({"lora": {"rank": 8, "dropout": 0.1}}, ["lora.dropout=0.1", "remove the key"]),
        ({"lora": {"rank": 8, "target_modules": "q_proj"}}, ["lora.target_modules='q_proj'", "['q_proj', 'v_proj']"]),
        ({"engine": {"linear": "fast"}}, ["engine.linear='fast'", "'in_place' or 'packed'"]),
        ({"engine": {"device": "tpu"}}, ["engine.device='tpu'", "'cpu' or 'cuda'"]),
        ({"sampling": {"temperature": 0.005}}, ["sampling.temperature=0.005", "greater than or equal to 0.01"]),
        ({"sampling": {"temperature": 2.5}}, ["sampling.temperature=2.5", "less than or equal to 2"]),
        ({"sampling": {"temperature": NAN}}, ["sampling.temperature=nan", "finite number"]),
        *[({key: value}, [f"{key}={value}", "finite number"]) for key in FLOATS for value in (NAN, INF)],
        ({"lr": [[0, 1e-4], [10, NAN]]}, ["lr=[[0", "finite number"]),
        ({"adam_betas": [0.9, NAN]}, ["adam_betas", "nan", "finite number"]),
        ({"critic": "shared", "critic_lora": {"rank": 0}}, ["critic_lora.rank=0", "greater than 0"]),
        ({"lora": {"rank": 8, "alpha": INF}}, ["lora.alpha=inf", "finite number"]),
        ({"num_cpus_per_learner": -1}, ["num_cpus_per_learner=-1", "greater than or equal to 0"]),
        ({"num_cpus_per_learner": NAN}, ["num_cpus_per_learner=nan", "finite number"]),
        ({"clip_high": 1e300}, ["clip_high=1e+300", "beyond what is computed in float32", "1e-18 to 1e+18"]),
        ({"grad_clip": 5e-324}, ["grad_clip=5e-324", "4.94066e-324 is beyond", "float32"]),
        ({"lr": [[0, 1e-300], [10, 1e-4]]}, ["lr=[[0", "1e-300 is beyond"]),
        ({"lora": {"rank": 8, "alpha": 1e300}}, ["lora=", "1e+300 is beyond"]),
        ({"weight_decay": 1e17}, ["weight_decay=1e+17", "1 - lr * weight_decay", "lower one"]),
        ({"lr": 0.1, "weight_decay": 11.0}, ["weight_decay=11.0", "with lr=0.1"]),
        ({"seed": 2**32}, ["seed=4294967296", "less than or equal to 2147483647"]),
        ({"seed": -1}, ["seed=-1", "greater than or equal to 0"]),
        ({"results_folder": ""}, ["results_folder=''", "name one, or leave it out"]),
        ({"results_folder": "s3://bucket/runs"}, ["results_folder='s3://bucket/runs'", "--results", "storage_path"]),
        ({"engine": {"model": "gpt2"}}, ["engine.model='gpt2'", "set policy_model"]),
        ({"engine": {"tokenizer": "gpt2"}}, ["engine.tokenizer='gpt2'", "remove the key"]),
        ({"engine": {"dtype": "float16"}}, ["engine.dtype='float16'", "set the option dtype"]),
        ({"engine": {"seed": 1}}, ["engine.seed=1", "option seed"]),
        ({"engine": {"max_num_seqs": 0}}, ["engine.max_num_seqs=0", "1 or more"]),
        ({"engine": {"max_num_seqs": 1.5}}, ["engine.max_num_seqs=1.5", "null or a whole number"]),
        ({"engine": {"kv_cache_gib": -1}}, ["engine.kv_cache_gib=-1", "1 or more"]),
        ({"engine": {"kv_cache_gib": "much"}}, ["engine.kv_cache_gib='much'", "whole number"]),
        ({"engine": {"kv_cache_gib": 0.5}}, ["engine.kv_cache_gib=0.5", "whole number"]),
        ({"engine": {"multiprocessing": "yes"}}, ["engine.multiprocessing='yes'", "true or false"]),
        ({"engine": {"max_model_len": 16}}, ["engine.max_model_len=16", "512 tokens", "remove the key"]),
        ({"engine": {"block_size": "x"}}, ["engine.block_size='x'", "whole number"]),
        ({"engine": {"enforce_eager": 1}}, ["engine.enforce_eager=1", "true or false"]),
        ({"engine": {"gpu_memory_utilization": 2.0}}, ["engine.gpu_memory_utilization=2.0", "at most 1"]),
        ({"engine": {"cpu_offload_gb": NAN}}, ["engine.cpu_offload_gb=nan", "finite number"]),
        ({"engine": {"max_num_batched_token": 1}}, ["engine.max_num_batched_token=1", "max_num_batched_tokens"]),
    ],
)
def test_a_bad_option_is_named_with_its_value_and_remedy(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        checked(values)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert "\n" not in str(error.value), "one mistake, one line"


def test_good_options_pass_and_get_their_defaults() -> None:
    options = checked(
        {"lr": 1, "engine": {"max_num_batched_tokens": 64}, "framework": "torch"}, other_keys=["framework"]
    )
    assert options.rollout.window_length == OPTIONS["window_length"].default == 64
    assert checked({"distributed": "fsdp", "num_learners": 2}).learners.distributed == "fsdp"
    assert checked({"weights_dtype": "bfloat16", "dtype": "bfloat16"}).models.weights_dtype == "bfloat16"
    assert checked({"mode": "sync", "num_env_runners": 0, "off_policy_correction": "none"}).pipeline.mode == "sync"


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
        check_model(checked(values))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_schedule_may_have_rllibs_tuples() -> None:
    assert checked({"lr": [(0, 1e-4), (1000, 1e-5)]}).optimizer.lr == [(0, 1e-4), (1000, 1e-5)]


def test_a_critic_beside_the_policy_needs_no_gpu() -> None:
    checked({"parallel_critic": True})
    checked({"num_gpus_per_learner": 1})
    with pytest.raises(OptionError, match=r"^parallel_critic=True: num_gpus_per_learner=1"):
        checked({"parallel_critic": True, "num_gpus_per_learner": 1})


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"has no config\.json"):
        check_model(checked({"policy_model": str(tmp_path)}))


@pytest.mark.parametrize(("family", "is_refused"), [("gemma2", True), ("qwen2", False)])
def test_families_that_overflow_in_float16_are_refused_in_it(family: str, is_refused: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}), encoding="utf-8")
    save_file({}, tmp_path / "model.safetensors")
    model = {"policy_model": str(tmp_path)}
    check_model(checked(model | {"dtype": "bfloat16"}))
    with pytest.raises(OptionError, match=rf"^dtype='float16': .*\({family}\)") if is_refused else nullcontext():
        check_model(checked(model | {"dtype": "float16"}))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({}, ["env=None"]),
        ({"env": "tppo_rl/ArithmeticChian-v0"}, ["ArithmeticChian", "did you mean tppo_rl/ArithmeticChain-v0"]),
        ({"env": "no_such_module:Env-v0"}, ["no_such_module", "importable"]),
        ({"env": "tppo_rl/ArithmeticChain-v0", "env_config": {"max_operand": 3}}, ["env_config", "max_operand"]),
        ({"env": "tppo_rl/ArithmeticChain-v0", "env_config": {"max_operands": -3}}, ["max_operands=-3"]),
        ({"env": "tppo_rl/ArithmeticChain-v0", "env_config": {"split": "train"}}, ["env_config.split", "remove"]),
        ({"env": ".:x"}, ["env='.:x'", "'.' is no name of a module", "importable module or a Python file"]),
        ({"env": ":x"}, ["env=':x'", "'' is no name of a module"]),
        ({"env": "a..b:x"}, ["env='a..b:x'", "no name of a module"]),
        ({"env": "GymV26Environment-v0"}, ["env='GymV26Environment-v0'"]),
        ({"env": "phys2d/CartPole-v0"}, ["env='phys2d/CartPole-v0'", "install what it needs"]),
        ({"env": "tppo_rl/ReasoningGym-v0", "env_config": {"task": "chain_summ"}}, ["chain_summ", "chain_sum"]),
    ],
)
def test_an_environment_that_will_not_do_is_refused(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        check_environment(checked(values))
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.fixture
def data_without_answers(tmp_path: Path) -> dict[str, Any]:
    source = write_lines(tmp_path / "rows.jsonl", ({"prompt": f"Double {k}."} for k in range(100)))
    return {"env": "tppo_rl/Dataset-v0", "env_config": {"source": source}}


def test_code_of_the_users_that_fails_is_named_with_its_line(tmp_path: Path) -> None:
    broken, leaves, raises = (tmp_path / f"{name}.py" for name in ("broken", "leaves", "raises"))
    broken.write_text("import os\n1 / 0\n", encoding="utf-8")
    leaves.write_text("raise SystemExit(3)\n", encoding="utf-8")
    raises.write_text(
        "import gymnasium\n\n\nclass Mine(gymnasium.Env):\n    def __init__(self, split):\n        raise KeyError('x')\n\n\n"
        "gymnasium.register('Raises-v0', Mine)\n",
        encoding="utf-8",
    )
    with pytest.raises(OptionError, match=r"^env='.*broken\.py:E-v0': ZeroDivisionError: .*broken\.py:2\)"):
        check_environment(checked({"env": f"{broken}:E-v0"}))
    with pytest.raises(OptionError, match=r"^env='.*leaves\.py:E-v0': SystemExit: 3"):
        check_environment(checked({"env": f"{leaves}:E-v0"}))
    with pytest.raises(OptionError, match=r"^env='.*Raises-v0': cannot be made: KeyError: 'x'; install what it needs"):
        check_environment(checked({"env": f"{raises}:Raises-v0"}))
    with pytest.raises(OptionError, match=r"^policy_loss='.*broken\.py:f': .* cannot be imported: ZeroDivisionError"):
        checked({"policy_loss": f"{broken}:f"})


def own_reward(folder: Path) -> str:
    file = folder / "mine.py"
    file.write_text("def length(*, completions, **columns):\n    return [float(len(text)) for text in completions]\n")
    return f"{file}:length"


@pytest.mark.parametrize("rewards", ["environment", "zero_one", "plus_minus_one"])
def test_rewards_need_answers(data_without_answers: dict[str, Any], rewards: str, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=f"^rewards='{rewards}': the data set has no answers"):
        check_environment(checked(data_without_answers | {"rewards": rewards}))
    check_environment(Options.of(**data_without_answers, rewards=own_reward(tmp_path), evaluation_interval=None))


def test_more_held_out_prompts_than_questions_are_warned_of(
    data_without_answers: dict[str, Any], tmp_path: Path
) -> None:
    data_without_answers["env_config"]["heldout"] = {"fraction": 0.2}
    values = data_without_answers | {"rewards": own_reward(tmp_path)}
    with pytest.warns(OptionWarning, match=r"^evaluation_duration=128: there are \d+ held-out questions"):
        check_environment(Options.of(**values, evaluation_duration=128, evaluation_interval=1))


def test_keys_read_from_sources_are_those_of_the_classes() -> None:
    from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

    assert rllib_keys() == set(vars(AlgorithmConfig()))
    assert {key: getattr(AlgorithmConfig(), key) for key in rllib_defaults()} == rllib_defaults()
    assert vllm_engine_args()["enforce_eager"] == {"bool"}
    assert vllm_engine_args()["max_num_batched_tokens"] == {"int", "None"}
    assert vllm_engine_args()["compilation_config"] == set()


@pytest.mark.parametrize(
    ("values", "workers"),
    [
        ({"env": "tppo_rl/ArithmeticChain-v0"}, 0),
        ({"env": "tppo_rl/Dataset-v0", "rewards": ["zero_one", {"type": "verifier", "verifier": "exact"}]}, 0),
        ({"env": "tppo_rl/Dataset-v0", "env_config": {"verifier": "math"}}, 2),
        ({"env": "tppo_rl/Dataset-v0", "env_config": {"preset": "math500"}}, 2),
        ({"env": "tppo_rl/Dataset-v0", "env_config": {"preset": "math500", "verifier": {"type": "exact"}}}, 0),
        ({"env": "tppo_rl/ReasoningGym-v0"}, 2),
        ({"env": "./mine.py:Mine-v0"}, 2),
        ({"env": "tppo_rl/ArithmeticChain-v0", "rewards": ["environment", "./mine.py:short"]}, 2),
        ({"env": "tppo_rl/ReasoningGym-v0", "scoring_workers": 0}, 0),
        ({"env": "tppo_rl/ArithmeticChain-v0", "scoring_workers": 5}, 5),
    ],
)
def test_what_can_hang_or_take_long_runs_in_workers(values: dict[str, Any], workers: int) -> None:
    options = Options.of(values)
    assert options.scoring.number(options) == workers


@pytest.mark.parametrize(
    "values",
    [{"scoring_workers": -1}, {"scoring_workers": "many"}, {"scoring_deadline_s": 0.0}, {"scoring_memory_gib": -1.0}],
)
def test_scoring_has_bounds(values: dict[str, Any]) -> None:
    (key,) = values
    with pytest.raises(OptionError, match=f"^{key}={values[key]!r}: input should be [^\n]*$"):
        Options.of(values)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"unfinished_advantage_scale": "Auto"}, r" or 'auto', did you mean auto\? \(Factor on the advantages of unfinished windows\)$"),
        ({"mode": "asinc"}, r"input should be 'async' or 'sync', did you mean async or sync\? \("),
        ({"mode": "Async"}, r"'async' or 'sync', did you mean async\? \("),
        ({"mode": "x"}, r"input should be 'async' or 'sync' \("),
        ({"num_epochs": 0}, r"^num_epochs=0: input should be greater than 0 \(Passes of the policy over a batch\)$"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_answered_in_a_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        Options.of(values)


def test_a_deadline_without_workers_is_refused() -> None:
    with pytest.raises(OptionError, match=r"scoring_deadline_s.*scoring_workers above 0"):
        checked({"scoring_deadline_s": 3.0, "env": "tppo_rl/ArithmeticChain-v0"} | MODEL)


@pytest.mark.parametrize(
    ("env", "env_config", "words"),
    [
        ("tppo_rl/ArithmeticChain-v0", {"max_operand": 3}, r"env_config\.max_operand=3: unknown option, did you mean env_config\.max_operands"),
        ("tppo_rl/Dataset-v0", {"sourc": "x.jsonl"}, r"env_config\.sourc='x\.jsonl': unknown option, did you mean env_config\.source"),
        ("tppo_rl/Dataset-v0", {"source": "none.jsonl"}, r"^env_config\.source='none\.jsonl': no such file"),
        ("tppo_rl/ArithmeticChain-v0", {"split_seed": -1}, r"^env_config\.split_seed=-1: "),
    ],
)  # fmt: skip
def test_a_key_of_the_environment_is_named_alone(env: str, env_config: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        check_environment(Options.of(env=env, env_config=env_config))
