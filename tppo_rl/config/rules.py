"""Rules between options: values that are each allowed and do not go together, each refused with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.config.presets import PRESETS
from tppo_rl.core.errors import OptionError
from tppo_rl.core.schedules import fault


def check_rules(options: Options, algorithm: str) -> None:
    """Checks an algorithm's options against one another.

    Raises:
        OptionError: names key, value, reason and remedy.
    """
    _check_preset(options, algorithm)
    _check_lengths(options)
    _check_pipeline(options)
    _check_learners(options)
    _check_sampling(options.sampling)
    _check_lora(options.lora)
    _check_estimators(options)
    _check_learning_rates(options)
    _check_losses(options)
    _check_groups(options)
    _check_that_all_is_read(options, algorithm)


def _refuse(options: Options, key: str, reason: str) -> None:
    raise OptionError(f"{key}={getattr(options, key)!r}: {reason}")


def _check_preset(options: Options, algorithm: str) -> None:
    preset = PRESETS[algorithm]
    for key, reason in preset.fixed.items():
        value = options.window if key == "window_length" else getattr(options, key)
        wanted = options.max_response_length if key == "window_length" else preset.options[key]
        if value != wanted:
            _refuse(options, key, f"{algorithm} has {key}={preset.options[key]!r}: {reason}")


def _check_lengths(options: Options) -> None:
    if options.window > options.max_response_length:
        raise OptionError(
            f"window_length={options.window_length}: longer than max_response_length={options.max_response_length}, so no "
            f"window would ever be cut; set window_length to {options.max_response_length} or less"
        )


def _check_pipeline(options: Options) -> None:
    if options.mode == "sync":
        return
    if options.max_staleness == 0:
        _refuse(
            options,
            "max_staleness",
            "mode='async' trains tokens that are at least one update old; set max_staleness to 1 or more, or mode to 'sync'",
        )
    if options.num_env_runners == 0:
        _refuse(
            options,
            "num_env_runners",
            "mode='async' needs an env-runner beside the learner; set num_env_runners to 1 or more, or mode to 'sync'",
        )
    if options.off_policy_correction == "none":
        _refuse(
            options,
            "off_policy_correction",
            "in mode='async' tokens are older than the trainer's weights, and old log-probs recomputed by the trainer make "
            "every ratio 1, so that nothing is corrected or clipped; set it to 'behaviour', 'decoupled' or "
            "'truncated_importance', or mode to 'sync'",
        )


def _check_learners(options: Options) -> None:
    if options.distributed == "fsdp" and options.num_learners < 2:
        _refuse(
            options,
            "distributed",
            f"weights are sharded over learners, and num_learners={options.num_learners} leaves nothing to shard over; set "
            "num_learners to 2 or more, or distributed to 'ddp'",
        )
    if options.parallel_critic and options.num_learners > 1:
        _refuse(
            options,
            "parallel_critic",
            f"num_learners={options.num_learners} exchange gradients in one order; set it to false, or num_learners to 1",
        )
    if options.weights_dtype == "bfloat16" and options.dtype == "float32":
        _refuse(
            options,
            "weights_dtype",
            "with dtype='float32' the computation would be finer than the weights that it trains; set dtype to 'bfloat16', "
            "or weights_dtype to 'float32'",
        )


def _check_sampling(sampling: Mapping[str, Any]) -> None:
    for key, value in sampling.items():
        if key != "temperature":
            raise OptionError(
                f"sampling.{key}={value!r}: training takes log-probs at the temperature alone, so the engine must sample "
                "from the whole distribution; remove the key"
            )
    temperature = sampling.get("temperature", 1.0)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or temperature <= 0:
        raise OptionError(f"sampling.temperature={temperature!r}: training samples, so it must be a number above 0")


def _check_lora(lora: Mapping[str, Any] | None) -> None:
    if lora is None:
        return
    for key, value in lora.items():
        if key not in ("rank", "alpha", "target_modules"):
            raise OptionError(f"lora.{key}={value!r}: must be one of rank, alpha, target_modules; remove the key")
    rank, alpha = lora.get("rank"), lora.get("alpha")
    if isinstance(rank, bool) or not isinstance(rank, int) or rank <= 0:
        raise OptionError(f"lora.rank={rank!r}: must be a whole number above 0; set it, for example to 16")
    if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, int | float) or alpha <= 0):
        raise OptionError(f"lora.alpha={alpha!r}: must be a number above 0; leave it out for {2 * rank}")
    targets = lora.get("target_modules", "all-linear")
    names = isinstance(targets, list | tuple) and targets and all(isinstance(name, str) for name in targets)
    if not names and targets != "all-linear":
        raise OptionError(
            f"lora.target_modules={targets!r}: must be a list of names of linear layers, such as ['q_proj', 'v_proj'], or "
            "'all-linear'; leave it out for the latter"
        )


def _check_estimators(options: Options) -> None:
    if options.advantage_estimator == "gae" and options.window < options.max_response_length:
        _refuse(
            options,
            "advantage_estimator",
            f"plain GAE has no value for a response that goes on after window_length={options.window_length}; set "
            "window_length to null, or advantage_estimator to 'egae'",
        )
    if options.advantage_estimator == "group_relative":
        if not options.whole_responses:
            _refuse(
                options,
                "advantage_estimator",
                "responses are compared when all of a group have ended, at the end of a step of whole responses; set mode to "
                "'sync' and window_length to null",
            )
        if options.group_size == 1:
            _refuse(options, "group_size", "a response has no others to be compared with; set it to 2 or more")
        if options.critic is not None:
            _refuse(options, "critic", "group-relative advantages need no values; set critic to null")
    elif options.critic is None:
        _refuse(
            options,
            "critic",
            f"advantage_estimator={options.advantage_estimator!r} needs values; set critic to 'separate', or "
            "advantage_estimator to 'group_relative'",
        )
    if options.hindsight:
        _check_hindsight(options)
    if options.value_batch_tokens is not None:
        if options.critic_targets != "monte_carlo":
            _refuse(
                options,
                "value_batch_tokens",
                f"critic_targets={options.critic_targets!r} depends on values that have changed when held episodes are "
                "trained; set critic_targets to 'monte_carlo', or value_batch_tokens to null",
            )
        if options.value_clip is not None:
            _refuse(options, "value_clip", "values of held episodes are not kept; set it or value_batch_tokens to null")
        if options.kl_coef and options.kl_in == "reward":
            _refuse(
                options, "value_batch_tokens", "held episodes have the environment's rewards alone; set kl_in to 'loss'"
            )


def _check_hindsight(options: Options) -> None:
    if options.window == options.max_response_length:
        _refuse(
            options,
            "hindsight",
            "without windows there is no earlier one to correct; set it to False, or a window_length",
        )
    if options.advantage_normalisation != "none":
        _refuse(
            options,
            "hindsight",
            f"it adds to the advantage that was used, which advantage_normalisation={options.advantage_normalisation!r} has "
            "changed; set one of them off",
        )
    if options.unfinished_advantage_scale != 1:
        _refuse(
            options,
            "hindsight",
            "it adds to the advantage that was used, of which "
            f"unfinished_advantage_scale={options.unfinished_advantage_scale} leaves a part; set one of them off",
        )
    if options.kl_coef and options.kl_in == "reward":
        _refuse(options, "hindsight", "the return that it compares with has no KL in it; set kl_in to 'loss'")


def _check_contexts(options: Options) -> None:
    if options.context_gradient:
        if options.context_cache_tokens:
            _refuse(
                options,
                "context_cache_tokens",
                "a gradient through contexts needs them computed anew; set context_gradient to false",
            )
        return
    if options.context_cache_tokens and (options.off_policy_correction != "behaviour" or options.sequence_mask):
        _refuse(
            options,
            "context_cache_tokens",
            "log-probs that are recomputed come from whole sequences, not from what older weights made of their contexts; "
            "set off_policy_correction to 'behaviour' and sequence_mask to null, or context_cache_tokens to 0",
        )
    reasons = {
        "packing": "packed sequences stand in one row, which has no context of its own; set packing to false",
        "positive_lm_coef": "tokens of earlier windows are imitated, which needs their gradient; set positive_lm_coef to 0",
    }
    for key, reason in reasons.items():
        if getattr(options, key):
            _refuse(
                options, "context_gradient", f"{key}={getattr(options, key)!r}: {reason}, or context_gradient to true"
            )


def _check_learning_rates(options: Options) -> None:
    for key in ("lr", "critic_lr"):
        if (problem := fault(getattr(options, key))) is not None:
            _refuse(options, key, problem)


def _check_losses(options: Options) -> None:
    if len(options.adam_betas) != 2 or not all(0 <= beta < 1 for beta in options.adam_betas):
        _refuse(options, "adam_betas", "must be two decay rates in [0, 1), such as [0.9, 0.99]")
    _check_contexts(options)
    if options.loss_mean == "response" and options.window < options.max_response_length:
        _refuse(
            options,
            "loss_mean",
            f"a fragment of window_length={options.window_length} is not a response, so that long responses would weigh more "
            "the more windows they have; set it to 'token', or window_length to null",
        )
    if options.policy_token_share < 1 and options.positive_lm_coef:
        _refuse(
            options,
            "policy_token_share",
            f"fragments are drawn by their advantages, which positive_lm_coef={options.positive_lm_coef} does not look at; set "
            "it to 1, or positive_lm_coef to 0",
        )
    if options.kl_coef and options.kl_in == "loss" and options.kl_estimator == "k1":
        _refuse(
            options,
            "kl_estimator",
            "the gradient of k1 as a term of the loss is zero on average; use 'k2' or 'k3', or set kl_in to 'reward'",
        )
    if options.kl_coef and options.kl_in == "reward" and options.advantage_estimator == "group_relative":
        _refuse(options, "kl_in", "group-relative advantages compare the environment's rewards; set it to 'loss'")
    if options.sequence_mask is not None:
        bounds = list(options.sequence_mask)
        if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1]:
            _refuse(options, "sequence_mask", "must be two bounds with 0 <= low < high, such as [0.5, 2]")


def _check_groups(options: Options) -> None:
    if options.whole_responses and options.num_slots % options.group_size:
        _refuse(
            options,
            "group_size",
            f"a step has {options.num_slots} slots, which are no whole number of groups; make num_envs_per_env_runner x "
            "num_env_runners a multiple of it",
        )
    if options.advantage_normalisation_scope == "group" and options.group_size == 1:
        _refuse(options, "advantage_normalisation_scope", "there are no groups; set group_size to 2 or more")
    if options.dynamic_sampling and (options.group_size == 1 or not options.whole_responses):
        _refuse(
            options,
            "dynamic_sampling",
            "whether a group has variance is known when all its responses have ended; it needs group_size of 2 or more, "
            "mode='sync' and window_length=null",
        )


_READ_ONLY_WITH: dict[str, tuple[str, Any]] = {
    "gamma": ("advantage_estimator='egae' or 'gae'", lambda o: o.advantage_estimator != "group_relative"),
    "lambda_": ("advantage_estimator='egae' or 'gae'", lambda o: o.advantage_estimator != "group_relative"),
    "boundary_value": ("advantage_estimator='egae'", lambda o: o.advantage_estimator == "egae"),
    "unfinished_advantage_scale": (
        "a window_length below max_response_length",
        lambda o: o.window < o.max_response_length,
    ),
    "group_scale": (
        "advantage_estimator='group_relative'",
        lambda o: o.advantage_estimator == "group_relative",
    ),
    "advantage_normalisation_scope": ("advantage_normalisation", lambda o: o.advantage_normalisation != "none"),
    "critic_lambda": (
        "critic_targets='lambda_returns' or 'also_truncated'",
        lambda o: o.critic_targets != "monte_carlo",
    ),
    "critic_layers": ("a critic", lambda o: o.critic is not None),
    "critic_targets": ("a critic", lambda o: o.critic is not None),
    "value_batch_tokens": ("a critic", lambda o: o.critic is not None),
    "value_clip": ("a critic", lambda o: o.critic is not None),
    **{
        key: ("a critic", lambda o: o.critic is not None)
        for key in (
            "critic_lr",
            "critic_num_epochs",
            "critic_minibatch_size",
            "critic_warmup_updates",
            "critic_grad_clip",
            "parallel_critic",
        )
    },
    "reference_model": ("kl_coef above 0", lambda o: o.kl_coef > 0),
    "kl_estimator": ("kl_coef above 0", lambda o: o.kl_coef > 0),
    "kl_in": ("kl_coef above 0", lambda o: o.kl_coef > 0),
    "importance_cap": (
        "off_policy_correction='truncated_importance' or hindsight",
        lambda o: o.off_policy_correction == "truncated_importance" or o.hindsight,
    ),
    "evaluation_interval_unit": ("an evaluation_interval", lambda o: o.evaluation_interval is not None),
    "dynamic_sampling_max_rounds": ("dynamic_sampling", lambda o: o.dynamic_sampling),
}


def _check_that_all_is_read(options: Options, algorithm: str) -> None:
    """An option that was changed and that nothing reads is a mistake of some kind."""
    defaults = {key: field.default for key, field in Options.model_fields.items()} | dict(PRESETS[algorithm].options)
    for key, (condition, is_read) in _READ_ONLY_WITH.items():
        if getattr(options, key) != defaults[key] and not is_read(options):
            _refuse(options, key, f"is read only with {condition}; leave it out")
