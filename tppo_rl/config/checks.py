"""Checks of a run's options: types, bounds, models and environments, before anything heavy is loaded."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tppo_rl.base_models import resolve_model
from tppo_rl.config.options import Options
from tppo_rl.config.presets import PRESETS
from tppo_rl.config.rules import check_rules
from tppo_rl.core.errors import OptionError

_HUB_TIMEOUT_S = 5.0


def check_options(values: Mapping[str, Any], *, algorithm: str = "TPPO", other_keys: Iterable[str] = ()) -> Options:
    """Checks the options of one run and returns them with the algorithm's defaults filled in.

    Args:
        values: options by key.
        algorithm: name of its preset.
        other_keys: further keys that are known elsewhere (RLlib's); they are not checked here.

    Raises:
        OptionError: unknown key, wrong type, value out of bounds, or values that do not go together.
    """
    other = set(other_keys)
    known = {key: value for key, value in values.items() if key in Options.model_fields}
    for key in values:
        if key not in known and key not in other:
            raise OptionError(unknown_key(key, values[key], [*Options.model_fields, *other]))
    known = dict(PRESETS[algorithm].options) | known
    try:
        options = Options(**known)
    except ValidationError as error:
        problems = groupby(error.errors(), key=lambda problem: problem["loc"][0])
        raise OptionError("\n".join(_explain(known, list(of_key)) for _, of_key in problems)) from None
    check_rules(options, algorithm)
    _check_engine(options.engine)
    return options


def check_model(options: Options) -> None:
    """Checks that the models exist, that there is room for prompt and response, and the critic's number of layers.

    Raises:
        OptionError: no such model, too short a context, or too few layers.
    """
    if options.policy_model is None:
        raise OptionError(
            "policy_model=None: which model to train is not given; set policy_model to a folder or hub id, for example "
            "tppo_rl/arithmetic-chain"
        )
    for key, own in (("policy_model", None), ("critic", "separate"), ("reference_model", "initial")):
        value = getattr(options, key)
        if value not in (None, own):
            load_model_config(key, value)
    if options.critic_layers is not None:
        key = "policy_model" if options.critic == "separate" else "critic"
        layers = load_model_config(key, getattr(options, key)).get("num_hidden_layers", 0)
        if options.critic_layers > layers:
            raise OptionError(
                f"critic_layers={options.critic_layers}: its backbone {getattr(options, key)!r} has {layers}; give fewer, or "
                "null for all"
            )
    context = load_model_config("policy_model", options.policy_model).get("max_position_embeddings")
    needed = options.max_prompt_length + options.max_response_length
    if context is not None and needed > context:
        raise OptionError(
            f"max_response_length={options.max_response_length}: with max_prompt_length={options.max_prompt_length} that "
            f"is {needed} tokens, but the context of policy_model={options.policy_model!r} holds {context}; lower "
            f"max_response_length to {max(context - options.max_prompt_length, 1)} or less"
        )


def check_attention(options: Options, *, num_gpus_per_learner: float) -> None:
    """Checks that the attention kernels can run, without looking for a GPU: the learner's may be in another machine.

    Raises:
        OptionError: kernels that are not installed, or that need a GPU or a number format that there is not.
    """
    if options.attention == "sdpa":
        return
    key = f"attention={options.attention!r}"
    if options.attention == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise OptionError(f"{key}: the package flash-attn is not installed; install it, or set attention to 'sdpa'")
    if num_gpus_per_learner == 0:
        raise OptionError(
            f"{key}: its kernels need a GPU, and num_gpus_per_learner=0 trains on the CPU; set num_gpus_per_learner to 1, or "
            "attention to 'sdpa'"
        )
    if options.attention == "flash_attention_2" and options.dtype == "float32":
        raise OptionError(
            f"{key}: there are no kernels for dtype='float32'; set dtype to 'bfloat16', or attention to 'sdpa'"
        )


def check_parallel_critic(options: Options, *, num_gpus_per_learner: float) -> None:
    """Checks that a critic that is to train beside the policy has a core to do so.

    Raises:
        OptionError: the learner is on a GPU, where both would wait for one stream.
    """
    if options.parallel_critic and num_gpus_per_learner:
        raise OptionError(
            f"parallel_critic=True: num_gpus_per_learner={num_gpus_per_learner}, and a GPU takes the work of both threads one "
            "after the other; set it to false"
        )


def check_environment(options: Options) -> None:
    """Checks that the environment is registered and takes its `env_config`.

    Raises:
        OptionError: unknown environment or bad `env_config`.
    """
    import gymnasium

    import tppo_rl.envs  # noqa: F401  (registers ours)

    if options.env is None:
        raise OptionError(
            "env=None: which environment to train on is not given; set env, for example tppo_rl/ArithmeticChain-v0"
        )
    if "split" in options.env_config:
        raise OptionError(
            f"env_config.split={options.env_config['split']!r}: training takes the train split and evaluation the held-out "
            "one; remove the key"
        )
    module, separator, name = options.env.rpartition(":")
    try:
        if separator:
            importlib.import_module(module)
        gymnasium.spec(name)
    except ImportError as error:
        raise OptionError(
            f"env={options.env!r}: {error}; what stands before the colon must be an importable module"
        ) from None
    except gymnasium.error.Error:
        raise OptionError(unknown_value("env", options.env, list(gymnasium.registry))) from None
    try:
        gymnasium.make(options.env, disable_env_checker=True, split="heldout", **options.env_config).close()
    except (TypeError, ValueError) as error:
        raise OptionError(f"env_config={options.env_config!r}: {error}; correct or remove that key") from None


def unknown_key(key: str, value: Any, known: Iterable[str]) -> str:
    """Message for a key that nothing reads."""
    return f"{key}={value!r}: unknown option{_suggestion(key, known)}; `tppo-rl options` lists all"


def unknown_value(key: str, value: Any, known: Iterable[str]) -> str:
    """Message for a name that is not registered."""
    names = sorted(known)
    ours = [name for name in names if name.startswith("tppo_rl/")] or names
    return f"{key}={value!r}: unknown name{_suggestion(str(value), names)}; known are {', '.join(ours)}"


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=3)
    return f", did you mean {' or '.join(close)}?" if close else ""


def _explain(values: Mapping[str, Any], problems: Sequence[Any]) -> str:
    """One line about one option, with a reason for each of the types that it may have."""
    option = problems[0]["loc"][0]
    places = {
        ".".join(str(part) for part in problem["loc"] if part == option or isinstance(part, int))
        for problem in problems
    }
    key, value = (places.pop(), problems[0]["input"]) if len(places) == 1 else (option, values[option])
    reasons = dict.fromkeys(problem["msg"].removeprefix("Input should be ") for problem in problems)
    field = Options.model_fields.get(option)
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{key}={value!r}: input should be {' or '.join(reasons)}{meaning}"


def _check_engine(engine: Mapping[str, Any]) -> None:
    own = {"device", "kv_cache_gib", "linear", "multiprocessing"}
    if engine.get("device", "cpu") not in ("cpu", "cuda"):
        raise OptionError(f"engine.device={engine['device']!r}: must be 'cpu' or 'cuda'")
    if engine.get("linear", "in_place") not in ("in_place", "packed"):
        raise OptionError(f"engine.linear={engine['linear']!r}: must be 'in_place' or 'packed'")
    unknown = set(engine) - own
    vllm_keys = vllm_engine_args() if unknown else frozenset()
    for key in sorted(unknown - vllm_keys):
        raise OptionError(unknown_key(f"engine.{key}", engine[key], [f"engine.{name}" for name in own | vllm_keys]))


@lru_cache
def vllm_engine_args() -> frozenset[str]:
    """Names of vLLM's engine arguments, read from its source: importing vLLM takes many seconds."""
    body = _class_body("vllm", "engine/arg_utils.py", "EngineArgs")
    targets = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    return frozenset(target.id for target in targets if isinstance(target, ast.Name))


@lru_cache
def rllib_keys() -> frozenset[str]:
    """Names of RLlib's options, read from its source: importing RLlib takes many seconds."""
    body = _class_body("ray", "rllib/algorithms/algorithm_config.py", "AlgorithmConfig")
    (constructor,) = [node for node in body if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    attributes = [node for node in ast.walk(constructor) if isinstance(node, ast.Attribute)]
    return frozenset(node.attr for node in attributes if isinstance(node.ctx, ast.Store))


@lru_cache
def constructor_arguments(package: str, file: str, name: str) -> frozenset[str]:
    """Names of a class's arguments, read from its source: importing its package takes many seconds."""
    functions = [node for node in _class_body(package, file, name) if isinstance(node, ast.FunctionDef)]
    (constructor,) = [node for node in functions if node.name == "__init__"]
    return frozenset(argument.arg for argument in (*constructor.args.args[1:], *constructor.args.kwonlyargs))


def _class_body(package: str, file: str, name: str) -> list[ast.stmt]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8")
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    return found.body


def load_model_config(key: str, name: str) -> dict[str, Any]:
    """Returns the config of a model: a folder, a hub id or a shipped model.

    Args:
        key: Option that names it, for the message.
        name: The option's value.

    Raises:
        OptionError: no such model.
    """
    model = resolve_model(name)
    folder = Path(model)
    if folder.is_dir():
        config = folder / "config.json"
        if not config.is_file():
            raise OptionError(f"{key}={name!r}: the folder has no config.json; give a Hugging Face model folder")
        return dict(json.loads(config.read_text(encoding="utf-8")))
    if folder.is_absolute() or name.startswith("."):
        raise OptionError(f"{key}={name!r}: no such folder; `tppo-rl warmstart` makes a small model")
    return _load_hub_config(key, name)


def _load_hub_config(key: str, name: str) -> dict[str, Any]:
    from huggingface_hub import hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import get_session, validate_repo_id

    try:
        validate_repo_id(name)
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            return dict(json.loads(Path(cached).read_text(encoding="utf-8")))
        # Asked once: the library's own download would try for half a minute before it says that there is no network.
        reply = get_session().get(hf_hub_url(name, "config.json"), timeout=_HUB_TIMEOUT_S, follow_redirects=True)
        reply.raise_for_status()
        return dict(reply.json())
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OptionError(
            f"{key}={name!r}: neither a folder nor a model that the hub gives ({reason}); give a folder, a hub id that this "
            "machine can reach or has cached, or tppo_rl/arithmetic-chain"
        ) from None
