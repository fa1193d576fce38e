"""What a checkpoint says of the run that wrote it, and whether another run can go on from it."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tppo_rl.config.model_files import load_model_config
from tppo_rl.config.options import OPTIONS, Options
from tppo_rl.config.rllib_options import unread_rllib_keys
from tppo_rl.config.sections.models import SHARED
from tppo_rl.config.text_envs import num_problems
from tppo_rl.core.checkpoint_files import check_whole
from tppo_rl.core.errors import OptionError, OptionWarning

_SHAPE = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
"""Keys of a model's config that its weights follow from."""


def checkpoint_contents(algorithm: Any) -> dict[str, Any]:
    """Returns what the manifest of every checkpoint says of an algorithm: all that is needed to build it again.

    It reads the model's config and makes the environment, so that it should be asked once. Settings of RLlib that are no
    data, such as classes, are named under `not_saved`.
    """
    config, default = algorithm.config, type(algorithm.config)()
    options = algorithm.options.flat()
    defaults = default.to_dict()
    # Keys that nothing reads are RLlib's own to set.
    readable = default._settable - OPTIONS.keys() - unread_rllib_keys(OPTIONS)
    changed = {key: value for key, value in config.to_dict().items() if key in readable and value != defaults.get(key)}
    rllib = {key: value for key, value in changed.items() if _is_data(value)}
    return {
        "algorithm": type(algorithm).__name__,
        "options": {key: value for key, value in options.items() if _is_data(value)},
        "rllib": rllib,
        "not_saved": sorted({*changed} - {*rllib} | {key for key, value in options.items() if not _is_data(value)}),
        "model_config": config.get_default_rl_module_spec().model_config,
        "model_shape": _shape(algorithm.options),
    }


def check_fits(checkpoint: Path, options: Options, algorithm: str) -> None:
    """Checks that a run can go on from a checkpoint, before anything is started.

    Raises:
        OptionError: files are missing or cut, or it is of another algorithm or another model.
    """
    check_facts(check_whole(checkpoint), options, algorithm, str(checkpoint))


def check_facts(facts: Mapping[str, Any], options: Options, algorithm: str, checkpoint: str) -> None:
    """Checks what the manifest of a checkpoint says.

    Args:
        facts: From the manifest.
        options: Of the run that is to go on.
        algorithm: Of that run.
        checkpoint: Its name in messages.

    Raises:
        OptionError: it is of another algorithm or another model.
    """
    if facts["algorithm"] != algorithm:
        raise OptionError(
            f"checkpoint={checkpoint!r}: was saved by {facts['algorithm']}, and this run is {algorithm}; go on with that, or begin "
            "anew from the exported policy (`tppo-rl export`)"
        )
    saved, shape = facts["model_shape"], _shape(options)
    different = [f"{key}={shape[key]} (saved: {saved.get(key)})" for key in shape if saved.get(key) != shape[key]]
    if different:
        raise OptionError(
            f"policy_model={options.models.policy_model!r}: is another model than that of the checkpoint: {', '.join(different)}"
        )
    named, name = facts["options"].get("policy_model"), options.models.policy_model
    if named != name:
        if options.models.lora is not None:
            raise OptionError(
                f"policy_model={name!r}: the checkpoint holds adapters of policy_model={named!r}; go on with that"
            )
        warnings.warn(
            f"policy_model={name!r}: the checkpoint was saved with policy_model={named!r}, whose weights it holds; they go on, and the new "
            "name is that of tokenizer and exports",
            OptionWarning,
            stacklevel=2,
        )
    _check_same_critic(facts["model_config"], options)
    _check_same_layers(facts["model_config"], options)


def _check_same_critic(saved: dict[str, Any], options: Options) -> None:
    models = options.models
    if (saved["critic"] is None) != (models.critic is None):
        raise OptionError(
            f"critic={models.critic!r}: the checkpoint has {'no' if saved['critic'] is None else 'a'} critic; go on as it was saved"
        )
    if (saved["critic"] == SHARED) != (models.critic == SHARED):
        raise OptionError(
            f"critic={models.critic!r}: the checkpoint's critic was saved with critic={saved['critic']!r}, which has other weights; go on "
            "as it was saved"
        )


def _check_same_layers(saved: dict[str, Any], options: Options) -> None:
    models = options.models
    for key, settings in {**models.adapters, "critic_layers": models.critic_layers}.items():
        if saved.get(key) != _plain(settings):
            raise OptionError(
                f"{key}={settings!r}: the checkpoint was saved with {key}={saved.get(key)!r}; go on with that"
            )


@contextmanager
def naming_weights(path: Any, options: Options) -> Iterator[None]:
    """Turns the error of weights that do not fit into one that says whose they are.

    Raises:
        OptionError: instead of it.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError) as error:
        if isinstance(error, OptionError):
            raise
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OptionError(
            f"checkpoint={str(path)!r}: its weights are not those of policy_model={options.models.policy_model!r} under these options: "
            f"{first}"
        ) from error


def _shape(options: Options) -> dict[str, Any]:
    config = load_model_config("policy_model", str(options.models.policy_model))
    text = config.get("text_config") or config
    return {key: text[key] for key in _SHAPE if key in text}


def _is_data(value: Any) -> bool:
    try:
        return bool(json.loads(json.dumps(value)) == _plain(value))
    except (TypeError, ValueError):
        return False


def _plain(value: Any) -> Any:
    """Tuples as lists, as JSON has them."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def check_restorable(options: Options, ledger: dict[str, Any], whole_responses_wait: bool) -> None:
    """Checks that a run with these options can go on from a checkpoint.

    Args:
        options: Of the run that goes on.
        ledger: Its state in the checkpoint.
        whole_responses_wait: Whether all that waits for an update are whole responses.

    Raises:
        OptionError: groups of another size are open, windows wait where whole responses are trained, or the environment has
            another number of problems.
    """
    if ledger["group_size"] != options.groups.group_size:
        raise OptionError(
            f"group_size={options.groups.group_size}: the checkpoint has open groups of group_size={ledger['group_size']}; go "
            "on with that, or begin anew"
        )
    problems = num_problems(options.environment, "train")
    if ledger.get("num_problems") != problems:
        raise OptionError(
            f"env_config={options.environment.env_config!r}: the data have num_problems={problems} for training, and the checkpoint "
            f"was made with num_problems={ledger.get('num_problems')}, so its place in them means nothing; give the same data, "
            "or begin anew"
        )
    if not options.rollout.has_windows and not whole_responses_wait:
        raise OptionError(
            f"window_length={options.rollout.window_length}: windows of unfinished responses wait in the checkpoint, and whole "
            "responses are to be trained; go on with the window_length that it was saved with"
        )
