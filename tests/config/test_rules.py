"""Options that do not go together are refused, each with its reason; what goes together passes."""

from __future__ import annotations

from typing import Any

import pytest

from tppo_rl.algorithms.tppo import SPEC
from tppo_rl.config.checks import check_options
from tppo_rl.config.options import OPTIONS, Options, algorithm_spec
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import ALGORITHMS


def checked(values: dict[str, Any], name: str | None = None) -> Options:
    return check_options(values, SPEC if name is None else algorithm_spec(name))


WHOLE = {"mode": "sync", "window_length": None}
SLEEP = {"mode": "sync", "num_gpus_per_env_runner": 1, "engine": {"enable_sleep_mode": True}}
GROUPS = WHOLE | {"critic": None, "advantage_estimator": "group_relative", "group_size": 4}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"advantage_estimator": "gae"}, ["advantage_estimator='gae'", "window_length=64", "'egae'"]),
        ({"advantage_estimator": "group_relative"}, ["advantage_estimator='group_relative'", "window_length to null"]),
        (GROUPS | {"group_size": 1}, ["group_size=1", "2 or more"]),
        (GROUPS | {"critic": "separate"}, ["critic='separate'", "set critic to null"]),
        (GROUPS | {"group_size": 5}, ["group_size=5", "32 slots", "multiple"]),
        ({"critic": None}, ["critic=None", "needs values"]),
        (
            WHOLE | {"advantage_estimator": "gae", "critic_warmup_responses": 9, "critic_warmup_slope": 0.5},
            ["critic_warmup_slope=0.5", "without windows"],
        ),
        (
            {"critic_warmup_responses": 9, "critic_warmup_slope": 0.5, "kl_coef": 0.1, "kl_in": "reward"},
            ["critic_warmup_slope=0.5", "kl_in to 'loss'"],
        ),
        ({"critic": "shared", "lora": {"rank": 4}}, ["critic='shared'", "in common already", "'separate'"]),
        ({"critic": "shared", "num_learners": 2, "distributed": "fsdp"}, ["critic='shared'", "distributed to 'ddp'"]),
        ({"critic": "shared", "parallel_critic": True}, ["parallel_critic=True", "set it to false"]),
        (GROUPS | {"critic": "shared"}, ["critic='shared'", "set critic to null"]),
        ({"hindsight": True, "window_length": None}, ["hindsight=True", "without windows"]),
        (
            {"hindsight": True, "advantage_estimator": "tppo_rl.learner.advantages:extended_advantages"},
            ["hindsight=True", "advantage_estimator='tppo_rl.learner.advantages:extended_advantages'"],
        ),
        (
            {
                "hindsight": True,
                "group_size": 2,
                "advantage_normalization": "scale",
                "advantage_normalization_scope": "group",
            },
            ["hindsight=True", "set advantage_normalization_scope to 'batch'"],
        ),
        ({"hindsight": True, "kl_coef": 0.1, "kl_in": "reward"}, ["hindsight=True", "kl_in to 'loss'"]),
        ({"loss_aggregation": "response"}, ["loss_aggregation='response'", "window_length=64", "'token'"]),
        ({"kl_coef": 0.1, "kl_estimator": "k1"}, ["kl_estimator='k1'", "zero on average", "'k2' or 'k3'"]),
        (GROUPS | {"kl_coef": 0.1, "kl_in": "reward"}, ["kl_in='reward'", "'loss'"]),
        ({"sequence_mask": [2.0, 0.5]}, ["sequence_mask=[2.0, 0.5]", "low < high"]),
        ({"sequence_mask": [0.5, 1.0, 2.0]}, ["sequence_mask"]),
        ({"mode": "sync", "partial_rollouts": True}, ["partial_rollouts=True", "window_length=64", "leave it out"]),
        (
            WHOLE | {"partial_rollouts": True, "max_staleness": 0, "old_responses": "drop"},
            ["old_responses='drop'", "read only with"],
        ),
        (
            WHOLE | {"partial_rollouts": True, "off_policy_correction": "none"},
            ["off_policy_correction='none'", "with partial_rollouts", "'behavior'"],
        ),
        ({"dynamic_sampling": True}, ["dynamic_sampling=True", "group_size of 2 or more"]),
        (
            {"advantage_normalization": "scale", "advantage_normalization_scope": "group"},
            ["scope='group'", "no groups"],
        ),
        (
            {"value_batch_tokens": 99, "critic_targets": "include_unfinished"},
            ["value_batch_tokens=99", "'monte_carlo'"],
        ),
        ({"value_batch_tokens": 99, "critic_warmup_responses": 9}, ["critic_warmup_responses=9", "learned from later"]),
        ({"value_batch_tokens": 99, "value_clip": 0.2}, ["value_clip=0.2", "not kept"]),
        ({"critic_loss": "hl_gauss", "value_clip": 0.2}, ["value_clip=0.2", "squared errors"]),
        ({"value_range": [1, 0]}, ["value_range=[1.0, 0.0]", "the first below the second"]),
        ({"value_range": [0, 1], "critic_initial_value": 2}, ["critic_initial_value=2", "outside of value_range"]),
        ({"value_batch_tokens": 99, "kl_coef": 0.1, "kl_in": "reward"}, ["value_batch_tokens=99", "kl_in to 'loss'"]),
        ({"context_cache_tokens": 99}, ["context_cache_tokens=99", "context_gradient to false"]),
        (
            {"context_cache_tokens": 99, "context_gradient": False, "off_policy_correction": "decoupled"},
            ["context_cache_tokens=99", "off_policy_correction to 'behavior'"],
        ),
        ({"context_gradient": False, "packing": True}, ["context_gradient=False", "packing=True"]),
        ({"context_gradient": False, "positive_lm_coef": 0.1}, ["context_gradient=False", "positive_lm_coef=0.1"]),
        (
            {"policy_token_fraction": 0.5, "positive_lm_coef": 0.1},
            ["policy_token_fraction=0.5", "positive_lm_coef=0.1"],
        ),
        (
            {"unfinished_advantage_scale": "auto", "kl_coef": 0.1, "kl_in": "reward"},
            ["unfinished_advantage_scale='auto'", "have no KL in them", "set kl_in to 'loss'"],
        ),
        ({"policy_token_fraction": 0.0}, ["policy_token_fraction=0.0", "greater than 0"]),
        ({"parallel_critic": True, "num_learners": 2}, ["parallel_critic=True", "num_learners to 1"]),
        ({"adam_betas": [2, 3]}, ["adam_betas=[2", "[0, 1)"]),
        ({"adam_betas": [0.9]}, ["adam_betas=[0.9]", "two"]),
        ({"dual_clip": 1.0}, ["dual_clip=1.0", "greater than 1"]),
        ({"lambda_": "adaptive"}, ["lambda_='adaptive'", "length_adaptive"]),
        ({"lambda_": 1.5}, ["lambda_=1.5"]),
        ({"gamma": 0.0}, ["gamma=0.0", "greater than 0"]),
        ({"overlong_fraction": 0.0}, ["overlong_fraction=0.0"]),
        ({"rewards": "signed"}, ["rewards='signed'", "plus_minus_one"]),
        ({"placement": "apart"}, ["placement='apart'", "'colocated', 'disaggregated' or 'cluster'"]),
        ({"placement": "colocated", "gpus": "8 x b100"}, ["gpus='8 x b100'", "no such card", "2 x 24 GiB"]),
        (SLEEP | {"mode": "async"}, ["engine.enable_sleep_mode=True", "mode='async'", "mode to 'sync'"]),
        (SLEEP | {"kv_on_update": "keep"}, ["engine.enable_sleep_mode=True", "kv_on_update to 'recompute'"]),
        (SLEEP | {"num_gpus_per_env_runner": 0}, ["engine.enable_sleep_mode=True", "runs on a CPU"]),
        (
            SLEEP | {"engine": {"enable_sleep_mode": True, "multiprocessing": True}},
            ["engine.enable_sleep_mode=True", "engine.multiprocessing"],
        ),
        (
            {"placement": "colocated", "weights_dtype": "bfloat16", "dtype": "float32"},
            ["weights_dtype='bfloat16'", "dtype='float32'"],
        ),
    ],
)
def test_pairs_are_refused_with_their_reason(values: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(OptionError) as error:
        checked(values)
    assert all(word in str(error.value) for word in words), str(error.value)


UNREAD = {
    "scoring_deadline_s": 5.0,
    "scoring_memory_gib": 1.0,
    "clip_low": 0.1,
    "clip_high": 0.3,
    "dual_clip": 3.0,
    "gamma": 0.99,
    "lambda_": 0.9,
    "boundary_value": "bootstrap",
    "group_scale": False,
    "advantage_normalization_scope": "group",
    "unfinished_advantage_scale": 0.5,
    "critic_lambda": 0.9,
    "critic_sees_answer": True,
    "critic_targets": "include_unfinished",
    "value_batch_tokens": 500,
    "value_clip": 0.3,
    "critic_loss": "cross_entropy",
    "value_range": [0.0, 1.0],
    "value_bins": 21,
    "critic_initial_value": 0.5,
    "critic_lr": 1e-3,
    "critic_layers": 2,
    "critic_lora": {"rank": 4},
    "critic_num_epochs": 2,
    "critic_minibatch_size": 64,
    "critic_warmup_updates": 4,
    "critic_warmup_responses": 100,
    "critic_warmup_slope": 0.5,
    "critic_grad_clip": 2.0,
    "parallel_critic": True,
    "reference_model": "tppo_rl/arithmetic-chain",
    "kl_estimator": "k2",
    "kl_in": "reward",
    "importance_cap": 3.0,
    "dynamic_sampling_max_rounds": 4,
    "evaluation_interval_unit": "tokens",
    "wrong_reward": -1.0,
    "max_queued_batches": 2.0,
    "old_responses": "drop",
    "gpus": "8 x h100",
    "weight_transport": "broadcast",
    "heartbeat_timeout_s": 60.0,
    "learner_timeout_s": 600.0,
}


@pytest.mark.parametrize("key", UNREAD)
def test_an_option_that_nothing_reads_is_refused(key: str) -> None:
    # Without a critic, without a KL term, without dynamic sampling, without clipping, without env-runner actors.
    without = GROUPS | {"policy_loss": "cispo", "num_env_runners": 0}
    base = (WHOLE | {"advantage_estimator": "gae", "group_size": 4}) if key == "group_scale" else without
    with pytest.raises(OptionError, match=rf"^{key}=.*is read only with"):
        checked(base | {key: UNREAD[key]})


def test_every_rule_of_that_kind_is_tested() -> None:
    assert set(UNREAD) == {key for key, option in OPTIONS.items() if option.read_with is not None}


def test_weights_are_broadcast_to_engines_that_take_offers() -> None:
    assert checked({"weight_transport": "broadcast"}).pipeline.weight_transport == "broadcast"
    engine = {"engine": {"type": "tppo_rl.rollout.simulated_engine:SimulatedEngine"}}
    with pytest.raises(OptionError, match=r"^weight_transport='broadcast': is read only with .*'vllm'"):
        checked({"weight_transport": "broadcast"} | engine)


@pytest.mark.parametrize(
    "values",
    [
        {"boundary_value": "tail_corrected", "hindsight": True, "importance_cap": 1.0},
        {"hindsight": True, "unfinished_advantage_scale": "auto", "advantage_normalization": "whiten"},
        {"lambda_": "length_adaptive", "lambda_alpha": 0.2, "value_batch_tokens": 4096},
        {"off_policy_correction": "truncated_importance", "importance_cap": 5.0, "sequence_mask": [0.5, 2]},
        {"kl_coef": 0.1, "kl_in": "reward", "kl_estimator": "k1", "reference_model": "tppo_rl/arithmetic-chain"},
        {"critic_targets": "lambda_returns", "critic_lambda": 0.9, "value_clip": 0.2},
        {"critic_loss": "hl_gauss", "value_range": [-1, 2], "value_bins": 21, "critic_initial_value": 0.5},
        {"group_size": 3, "advantage_normalization": "whiten", "advantage_normalization_scope": "group"},
        {"dual_clip": 3, "entropy_coef": 0.01, "positive_lm_coef": 0.1, "overlong_fraction": 0.2},
        GROUPS | {"group_scale": False, "loss_aggregation": "response", "dynamic_sampling": True},
        {"window_length": None},
        {"window_length": None, "max_queued_batches": 3, "old_responses": "drop"},
        WHOLE | {"partial_rollouts": True, "max_staleness": 0, "off_policy_correction": "none"},
        GROUPS | {"mode": "async", "dynamic_sampling": True},
        SLEEP,
        # What a placement sets later is not missed before.
        {"placement": "cluster", "distributed": "fsdp", "weights_dtype": "bfloat16", "gpus": "2 x 8 x h100"},
        {"placement": "colocated", "mode": "sync", "engine": {"enable_sleep_mode": True}},
    ],
)
def test_what_goes_together_passes(values: dict[str, Any]) -> None:
    checked(values)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_specs_are_sound(name: str) -> None:
    spec = algorithm_spec(name)
    assert spec.name == name
    assert set(spec.options) <= set(OPTIONS)
    assert set(spec.reasons) <= set(spec.options)
    options = checked({}, name)
    for key, value in spec.options.items():
        assert options.flat()[key] == value


def test_whole_responses() -> None:
    assert checked({}, "PPO").waits_for_longest
    assert checked({"max_response_length": 100}, "GRPO").window == 100
    assert checked({"mode": "sync", "window_length": 256}).waits_for_longest
    assert not checked({"window_length": None}).waits_for_longest, "async never waits for the longest"
    assert not checked({"mode": "sync"}).waits_for_longest
    assert not checked(WHOLE | {"partial_rollouts": True}).waits_for_longest


def test_windows_have_no_ratio_of_whole_responses() -> None:
    with pytest.raises(OptionError, match=r"^policy_loss='gspo': its ratio is that of a whole response"):
        checked({"policy_loss": "gspo"})
    checked({"policy_loss": "gspo", "window_length": None})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"policy_loss": "clippd"}, "policy_loss='clippd': unknown name, did you mean clipped.*or module:object"),
        ({"policy_loss": "no_such_module:loss"}, "no_such_module cannot be imported"),
        ({"policy_loss": "tppo_rl.learner.policy_losses:nothing"}, "has no 'nothing'"),
        (
            {"policy_loss": {"type": "cispo", "cop": 3.0}},
            "policy_loss.cop=3.0: .*did you mean policy_loss.cap.*takes cap",
        ),
        ({"policy_loss": {"type": "cispo", "cap": "much"}}, "policy_loss.cap='much': .*number"),
        ({"policy_loss": {"type": "clipped", "cap": 3.0}}, "clipped takes no arguments; remove it"),
        ({"policy_loss": 3}, "policy_loss=3: must be a name, module:object, or a mapping"),
        ({"rewards": {"name": "zero_one"}}, "rewards=.*must be a name"),
        ({"advantage_estimator": "egea"}, "did you mean egae"),
        ({"engine": {"type": "vlm"}}, "engine.type='vlm': unknown name, did you mean vllm"),
    ],
)
def test_parts_are_checked_before_anything_starts(values: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        checked(values)
