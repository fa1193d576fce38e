"""Every option of a run that is ours or that we rely on: type, unit, default, bounds, and rules between them.

One schema serves the builder, YAML files, the command line and Tune. It imports neither torch nor Ray, so a mistake
is reported before anything heavy is loaded.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError

from tppo_rl.base_models import resolve_model

_HUB_TIMEOUT_S = 5.0


class Options(BaseModel):
    """Options by YAML key. Keys that RLlib defines keep RLlib's meaning; the rest is documented here."""

    model_config = ConfigDict(extra="forbid", strict=True)

    # .environment()
    env: str | None = Field(None, description="Gymnasium id of a text environment.")
    env_config: dict[str, Any] = Field(
        {}, description="Keyword arguments of the environment; `split` is set by the pipeline."
    )

    # .language_model()
    policy_model: str | None = Field(
        None, description="Folder or hub id of the policy: any transformers causal language model with a chat template."
    )
    critic: str = Field(
        "separate",
        description="`separate`: own backbone started from the policy's folder; else folder or hub id of its backbone.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of policy, critic and engine.")
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the trainer's weights, gradients and moments: `float32` master weights, or `bfloat16`: half the "
        "memory, small steps are rounded away.",
    )

    # .env_runners()
    num_env_runners: int = Field(1, ge=0, description="Env-runner actors; 0 samples in the main process (sync only).")
    num_envs_per_env_runner: PositiveInt = Field(32, description="Slots of an env-runner.")
    window_length: PositiveInt = Field(64, description="Most sampled tokens of a fragment.")
    max_response_length: PositiveInt = Field(256, description="Cap on all tokens after the prompt.")
    max_prompt_length: PositiveInt = Field(256, description="Longest prompt, in tokens; a longer one is an error.")
    sampling: dict[str, Any] = Field(
        {"temperature": 1.0}, description="`temperature` > 0 of training responses; log-probs are taken after it."
    )
    engine: dict[str, Any] = Field(
        {}, description="`device` (`cpu`, `cuda`), `kv_cache_gib` (CPU), `multiprocessing`, and vLLM's EngineArgs."
    )
    engine_steps_per_sample: PositiveInt | None = Field(
        None, description="Engine steps of one request to an env-runner in async mode; None is min(window_length, 32)."
    )

    # .learners()
    num_learners: int = Field(0, ge=0, description="Learner actors; 0 trains in the main process.")
    distributed: Literal["ddp", "fsdp"] = Field(
        "ddp",
        description="`ddp`: every learner holds all weights; `fsdp`: weights, gradients and moments are sharded over the "
        "learners. Checkpoints are the same.",
    )
    gradient_checkpointing: bool = Field(
        False, description="Compute activations again in the backward pass: less memory, about a third more work."
    )

    # .training()
    lr: float = Field(1e-6, gt=0, description="Learning rate of the policy.")
    critic_lr: float = Field(2e-6, gt=0, description="Learning rate of the critic (VAPO: twice the policy's).")
    lr_warmup_updates: int = Field(
        0,
        ge=0,
        description="Updates over which the policy's learning rate rises linearly, counted after the critic's warm-up.",
    )
    adam_betas: tuple[float, float] | list[float] = Field((0.9, 0.99), description="AdamW's betas, both models.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay, both models.")
    gamma: float = Field(1.0, ge=0, le=1, description="Discount for each token (T-PPO: 1).")
    lambda_: float = Field(0.95, ge=0, le=1, description="EGAE's lambda; the critic's targets always use 1.")
    boundary_value: Literal["hold", "bootstrap"] = Field(
        "hold",
        description="V(s_l) of an unfinished fragment: `hold` takes V(s_(l-1)) (T-PPO), `bootstrap` the critic's.",
    )
    clip_low: float = Field(0.2, ge=0, lt=1, description="Ratios below 1 - clip_low are clipped.")
    clip_high: float = Field(0.28, ge=0, description="Ratios above 1 + clip_high are clipped (DAPO: clip-higher).")
    off_policy_correction: Literal["behaviour", "none"] = Field(
        "behaviour",
        description="Denominator of the ratio: `behaviour` log-probs of the engine, or `none`: recomputed by the "
        "trainer before the update, which leaves staleness uncorrected.",
    )
    train_batch_size_per_learner: PositiveInt = Field(
        4096, description="Sampled tokens of an update, per learner (async; in sync one step of all slots)."
    )
    minibatch_size: PositiveInt | None = Field(
        None, description="Sampled tokens of an optimizer step, per learner; None: the whole batch."
    )
    micro_batch_tokens: PositiveInt = Field(2048, description="Padded tokens of one forward pass.")
    num_epochs: PositiveInt = Field(1, description="Passes of the policy over a batch.")
    critic_num_epochs: PositiveInt = Field(1, description="Passes of the critic over the finished episodes of a batch.")
    critic_minibatch_size: PositiveInt | None = Field(
        None, description="Response tokens of a critic step, per learner; None: all of a batch's."
    )
    critic_warmup_updates: int = Field(0, ge=0, description="First updates, in which the policy is frozen (VC-PPO).")
    grad_clip: float | None = Field(1.0, gt=0, description="Largest global gradient norm of the policy.")
    critic_grad_clip: float | None = Field(1.0, gt=0, description="Largest global gradient norm of the critic.")

    # .pipeline()
    mode: Literal["async", "sync"] = Field(
        "async", description="`sync`: one window, one update (the paper); `async`: env-runners never wait for updates."
    )
    max_staleness: int = Field(
        2, ge=0, description="Most policy versions between a token's sampling and its training (async)."
    )
    kv_on_update: Literal["recompute", "keep"] = Field(
        "recompute", description="Keys and values of running requests at a weight update: computed anew, or kept."
    )
    log_prob_gap_alarm: float | None = Field(
        None, gt=0, description="Mean engine-to-trainer log-prob gap that raises an alarm, nats; None: by dtype."
    )

    # .evaluation()
    evaluation_interval: PositiveInt | None = Field(None, description="Iterations between evaluations; None: never.")
    evaluation_duration: PositiveInt = Field(512, description="Held-out prompts of an evaluation.")
    evaluation_num_env_runners: int = Field(
        0, ge=0, description="Own env-runners for evaluation; 0 uses the training ones."
    )

    # .debugging(), .reporting()
    seed: int = Field(0, ge=0, description="Of prompts, sampling and minibatches.")
    rollout_log_fragments: int = Field(
        64, ge=0, description="Fragments of an iteration that are kept in `rollouts/*.parquet`."
    )

    results_folder: str | None = Field(
        None, description="Folder of TensorBoard events and `rollouts/`; None: Tune's folder of the trial."
    )


class OptionError(ValueError):
    """A bad option: the message names key, value and remedy."""


def check_options(values: Mapping[str, Any], *, other_keys: Iterable[str] = ()) -> Options:
    """Checks the options of one run and returns them with defaults filled in.

    Args:
        values: options by key.
        other_keys: further keys that are known elsewhere (RLlib's); they are not checked here.

    Raises:
        OptionError: unknown key, wrong type, value out of bounds, or values that do not go together.
    """
    other = set(other_keys)
    known = {key: value for key, value in values.items() if key in Options.model_fields}
    for key in values:
        if key not in known and key not in other:
            raise OptionError(unknown_key(key, values[key], [*Options.model_fields, *other]))
    try:
        options = Options(**known)
    except ValidationError as error:
        raise OptionError("\n".join(_explain(problem) for problem in error.errors())) from None
    _check_lengths(options)
    _check_pipeline(options)
    _check_learners(options)
    _check_sampling(options.sampling)
    _check_engine(options.engine)
    return options


def check_model(options: Options) -> None:
    """Checks that the policy model exists and has room for prompt and response.

    Raises:
        OptionError: no such model, or too short a context.
    """
    if options.policy_model is None:
        raise OptionError(
            "policy_model=None: which model to train is not given; set policy_model to a folder or hub id, for example "
            "tppo_rl/arithmetic-chain"
        )
    for key in ("policy_model", "critic"):
        value = getattr(options, key)
        if value != "separate":
            _load_model_config(key, value)
    context = _load_model_config("policy_model", options.policy_model).get("max_position_embeddings")
    needed = options.max_prompt_length + options.max_response_length
    if context is not None and needed > context:
        raise OptionError(
            f"max_response_length={options.max_response_length}: with max_prompt_length={options.max_prompt_length} that "
            f"is {needed} tokens, but the context of policy_model={options.policy_model!r} holds {context}; lower "
            f"max_response_length to {max(context - options.max_prompt_length, 1)} or less"
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


def _explain(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"] if part in Options.model_fields or isinstance(part, int))
    field = Options.model_fields.get(str(problem["loc"][0]))
    meaning = f" ({field.description})" if field is not None and field.description else ""
    return f"{key}={problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}{meaning}"


def _check_lengths(options: Options) -> None:
    if options.window_length > options.max_response_length:
        raise OptionError(
            f"window_length={options.window_length}: longer than max_response_length={options.max_response_length}, so no "
            f"window would ever be cut; set window_length to {options.max_response_length} or less"
        )


def _check_pipeline(options: Options) -> None:
    if options.mode == "sync":
        return
    if options.max_staleness == 0:
        raise OptionError(
            "max_staleness=0: mode='async' trains tokens that are at least one update old; set max_staleness to 1 or more, "
            "or mode to 'sync'"
        )
    if options.num_env_runners == 0:
        raise OptionError(
            "num_env_runners=0: mode='async' needs an env-runner beside the learner; set num_env_runners to 1 or more, or "
            "mode to 'sync'"
        )
    if options.off_policy_correction == "none":
        raise OptionError(
            "off_policy_correction='none': in mode='async' tokens are older than the trainer's weights, and old log-probs "
            "recomputed by the trainer make every ratio 1, so that nothing is corrected or clipped; set it to 'behaviour', "
            "or mode to 'sync'"
        )


def _check_learners(options: Options) -> None:
    if options.distributed == "fsdp" and options.num_learners < 2:
        raise OptionError(
            f"distributed='fsdp': weights are sharded over learners, and num_learners={options.num_learners} leaves nothing "
            "to shard over; set num_learners to 2 or more, or distributed to 'ddp'"
        )
    if options.weights_dtype == "bfloat16" and options.dtype == "float32":
        raise OptionError(
            "weights_dtype='bfloat16': with dtype='float32' the computation would be finer than the weights that it "
            "trains; set dtype to 'bfloat16', or weights_dtype to 'float32'"
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


def _check_engine(engine: Mapping[str, Any]) -> None:
    own = {"device", "kv_cache_gib", "multiprocessing"}
    if engine.get("device", "cpu") not in ("cpu", "cuda"):
        raise OptionError(f"engine.device={engine['device']!r}: must be 'cpu' or 'cuda'")
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


def _class_body(package: str, file: str, name: str) -> list[ast.stmt]:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return []
    source = Path(spec.submodule_search_locations[0], file).read_text(encoding="utf-8")
    (found,) = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == name]
    return found.body


def _load_model_config(key: str, name: str) -> dict[str, Any]:
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
