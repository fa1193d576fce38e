"""RLlib's own options: those that a run reads, and what to use instead of the others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tppo_rl.config.foreign_sources import rllib_defaults, rllib_keys
from tppo_rl.core.errors import OptionError
from tppo_rl.core.registry import find_object

CALLBACKS = (
    "on_algorithm_init",
    "on_train_result",
    "on_evaluate_start",
    "on_evaluate_end",
    "on_env_runners_recreated",
    "on_checkpoint_loaded",
    "on_environment_created",
    "on_episode_end",
    "on_sample_end",
)
"""Callbacks of RLlib that are called here; `docs/extending.md` lists their arguments."""
RLLIB_KEYS_READ = frozenset(
    {
        "add_default_connectors_to_learner_pipeline",
        "algo_class",
        "callbacks",
        "callbacks_class",
        *(f"callbacks_{name}" for name in CALLBACKS),
        "create_local_env_runner",
        "custom_resources_for_main_process",
        "custom_resources_per_env_runner",
        "custom_resources_per_learner",
        "delay_between_env_runner_restarts_s",
        "env_runner_cls",
        "env_runner_health_probe_timeout_s",
        "env_runner_restore_timeout_s",
        "evaluation_config",
        "evaluation_parallel_to_training",  # It is refused with a reason of its own.
        "framework",
        "framework_str",
        "ignore_env_runner_failures",
        "in_evaluation",
        "learner_class",
        "learner_config_dict",
        "learner_connector",
        "local_gpu_idx",
        "log_level",
        "logger_creator",
        "max_num_env_runner_restarts",
        "max_requests_in_flight_per_env_runner",
        "metrics_num_episodes_for_smoothing",
        "num_consecutive_env_runner_failures_tolerance",
        "num_cpus_for_main_process",
        "placement_strategy",
        "restart_failed_env_runners",
        "stats_cls_lookup",
    }
)
RLLIB_MAPPINGS = frozenset(
    {
        "custom_resources_for_main_process",
        "custom_resources_per_env_runner",
        "custom_resources_per_learner",
        "evaluation_config",
        "learner_config_dict",
    }
)
"""Keys of `RLLIB_KEYS_READ` whose value is a mapping with keys of its own."""
_CLASSES = frozenset(
    {"algo_class", "env_runner_cls", "learner_class", "learner_connector", "logger_creator", "stats_cls_lookup"}
)
_CALLED = f"the callbacks that are called are {', '.join(CALLBACKS)}"
_ONE_UPDATE = "an iteration is one update; set train_batch_size_per_learner"
_SAMPLING = "tokens are drawn at sampling.temperature"
_TEXT = "prompts and responses are text"
_ONE_POLICY = "one language model is trained"
_INSTEAD = {
    "batch_mode": "a batch is made of windows; set window_length, or mode to 'sync' for whole responses",
    "clip_rewards": "rewards are trained as they are; clip them in a function for the option rewards",
    "evaluation_duration_unit": "evaluation_duration counts held-out prompts",
    "evaluation_sample_timeout_s": "an evaluation waits for all of its prompts",
    "exploration_config": _SAMPLING,
    "explore": _SAMPLING,
    "grad_clip_by": "grad_clip limits the norm of all gradients of a model together",
    "log_gradients": "the norms are always logged, as learners/policy_grad_norm and learners/critic_grad_norm",
    "min_sample_timesteps_per_iteration": _ONE_UPDATE,
    "min_time_s_per_iteration": _ONE_UPDATE,
    "min_train_timesteps_per_iteration": _ONE_UPDATE,
    "model": "set policy_model and critic",
    "normalize_actions": _TEXT,
    "num_gpus": "set num_gpus_per_learner and num_gpus_per_env_runner",
    "observation_filter": _TEXT,
    "optimizer": "set lr, critic_lr and weight_decay",
    "policies": _ONE_POLICY,
    "policies_to_train": _ONE_POLICY,
    "policy_mapping_fn": _ONE_POLICY,
    "rollout_fragment_length": "set window_length, the most tokens of a fragment, or engine_steps, those between two answers of an env-runner",
    "sample_timeout_s": "an env-runner is lost when its actor dies, not when it is slow",
    "shuffle_batch_per_epoch": "minibatches are always drawn anew for each pass over the batch",
    "train_batch_size": "set train_batch_size_per_learner, in sampled tokens",
}


def unread_rllib_keys(ours: Iterable[str]) -> frozenset[str]:
    """Returns RLlib's options that nothing here reads, given this project's own keys."""
    return rllib_keys() - RLLIB_KEYS_READ - set(ours)


def check_no_classes(given: Mapping[str, Any]) -> None:
    """Refuses options of a run file that take a class or a function of Python.

    Raises:
        OptionError: such an option is given.
    """
    for key in sorted(_CLASSES & given.keys()):
        if given[key] is not None:
            raise OptionError(
                f"{key}={given[key]!r}: takes an object of Python, which a run file cannot hold; leave it out"
            )


def check_rllib_keys(given: Mapping[str, Any], ours: Iterable[str]) -> None:
    """Checks that something reads each RLlib option that a user gave.

    Args:
        given: Options by key.
        ours: This project's own keys.

    Raises:
        OptionError: nothing here reads an RLlib option; the message says what to use instead.
    """
    unread = unread_rllib_keys(ours)
    for key, value in given.items():
        if key in unread:
            raise OptionError(not_read(key, value))
        if key in rllib_defaults():
            _check_kind(key, value, rllib_defaults()[key])
        elif key in RLLIB_MAPPINGS and not isinstance(value, Mapping):
            raise OptionError(f"{key}={value!r}: must be a mapping; correct it, or leave it out")


def _check_kind(key: str, value: Any, default: bool | int | float | str) -> None:
    """Refuses a value of another kind than the default, which RLlib would meet in the middle of a start."""
    where = f"{key}={value!r}"
    if isinstance(default, bool):
        if not isinstance(value, bool):
            raise OptionError(f"{where}: must be true or false, by default {default}; correct it")
    elif isinstance(default, str):
        if not isinstance(value, str):
            raise OptionError(f"{where}: must be a text, by default {default!r}; correct it")
    elif isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise OptionError(f"{where}: must be a finite number, at least 0, by default {default}; correct it")
    elif isinstance(default, int) and not isinstance(value, int):
        raise OptionError(f"{where}: must be a whole number, by default {default}; correct it")


def with_callbacks(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options with objects in place of callbacks' places (`module:object`, `file.py:object`).

    Raises:
        OptionError: there is no object at a place, or what is given cannot be called.
    """
    return {key: _callback(key, value) if key.startswith("callbacks") else value for key, value in given.items()}


def _callback(key: str, value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_callback(key, one) for one in value]
    found = find_object(key, value) if _is_place(value) else value
    if found is not None and not callable(found):
        raise OptionError(f"{key}={value!r}: cannot be called; give module:object or file.py:object, or leave it out")
    return found


def check_callback_classes(classes: Iterable[type], base: type) -> None:
    """Checks that something calls every method of a user's callbacks.

    Args:
        classes: The user's callback classes.
        base: RLlib's callback class, whose methods do nothing.

    Raises:
        OptionError: a method that nothing calls.
    """
    for found in classes:
        for name in dir(base):
            own = name.startswith("on_") and getattr(found, name, None) is not getattr(base, name)
            if own and name not in CALLBACKS:
                raise OptionError(
                    f"callbacks_class={found.__name__}: its method {name} is never called here; {_CALLED}"
                )


def not_read(key: str, value: Any) -> str:
    """Returns the message about an RLlib option that nothing reads."""
    instead = _INSTEAD.get(key) or _instead_of_kind(key) or "leave it out"
    return f"{key}={value!r}: is an option of RLlib's that language models do not have; {instead}"


def _is_place(value: Any) -> bool:
    return isinstance(value, str) and ":" in value


def _instead_of_kind(key: str) -> str | None:
    if key.startswith("callbacks_on_"):
        return _CALLED
    if key.startswith(("offline_", "input", "output", "dataset_", "prelearner_")) or "offline_eval" in key:
        return "there is no offline training"
    if key.startswith("torch_compile"):
        return "models are not compiled"
    return None
