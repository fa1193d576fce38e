"""Checks of a run's options: types, bounds, models and environments, before anything heavy is loaded."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tppo_rl.config.engine_arguments import check_engine_argument
from tppo_rl.config.foreign_sources import vllm_engine_args
from tppo_rl.config.model_files import check_weight_files, load_model_config
from tppo_rl.config.options import OPTIONS, SECTIONS, Options, with_new_names
from tppo_rl.config.reward_checks import check_reward_columns, check_reward_parts
from tppo_rl.config.section import Section, refuse
from tppo_rl.config.sections.critic import ANSWER_TOKENS
from tppo_rl.config.sections.placement import PLACEMENT_DEFAULTS
from tppo_rl.config.sections.rollout import EngineOptions
from tppo_rl.config.sleep_checks import check_sleep
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.errors import OptionError, OptionWarning, unknown_key
from tppo_rl.core.registry import ADVANTAGES, ENGINES, POLICY_LOSSES, PartSpec, Registry, find_object
from tppo_rl.core.reward_parts import RewardParts
from tppo_rl.core.reward_signature import ground_truth

VLLM_OWN_KEYS = frozenset({"kv_cache_gib", "linear", "multiprocessing"})
"""Keys of `engine` that our vLLM engine reads itself."""
_OPTIONS_OF_ENGINE = {
    "dtype": "policy and engine compute in one format; set the option dtype",
    "logprobs_mode": "training needs log-probs after the temperature; remove the key",
    "model": "the engine samples from the policy; set policy_model",
    "model_weights": "the engine samples from the policy; set policy_model",
    "seed": "each env-runner has its own, which follows from the option seed; set that",
    "skip_tokenizer_init": "the engine is given tokens and gives tokens; remove the key",
    "tokenizer": "the tokenizer is the policy's; remove the key",
    "weight_transfer_config": "new weights go to the workers by our own transfer; remove the key",
    "worker_cls": "the workers are ours, which take new weights; add methods by engine.worker_extension_cls instead",
}
"""Arguments of vLLM's that a run gives itself, and what to do instead."""
_REWARDS_BY_CORRECTNESS = frozenset({"zero_one", "plus_minus_one"})

_SMALLEST, _LARGEST = 1e-18, 1e18
"""Bounds of numbers, in absolute value; their squares are held by float32."""
_NOT_IN_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
"""Model types that vLLM does not run in float16."""


def check_options(values: Mapping[str, Any], spec: AlgorithmSpec, *, other_keys: Iterable[str] = ()) -> Options:
    """Checks the options of one run and returns them with the algorithm's defaults filled in.

    Args:
        values: Options by key.
        spec: The algorithm.
        other_keys: Further keys that are known elsewhere (RLlib's); they are not checked here.

    Raises:
        OptionError: an unknown key, a wrong type, a value out of bounds, or values that do not go together.
    """
    other = set(other_keys)
    values = with_new_names(values)
    for key, value in values.items():
        if key not in OPTIONS and key not in other:
            raise OptionError(unknown_key(key, value, [*OPTIONS, *other]))
    given = {key: value for key, value in values.items() if key in OPTIONS}
    defaults = spec.options | (PLACEMENT_DEFAULTS if given.get("placement") is not None else {})
    options = Options.of(defaults | given)
    check_rules(options, spec)
    return options


def check_rules(options: Options, spec: AlgorithmSpec) -> None:
    """Checks an algorithm's options against one another.

    Raises:
        OptionError: names key, value, reason and remedy.
    """
    for key, reason in spec.reasons.items():
        value, wanted = _comparable(options, key), _comparable(Options.of(options.flat() | spec.options), key)
        if value != wanted:
            refuse(key, _written(options.value(key)), f"{spec.name} has {key}={spec.options[key]!r}: {reason}")
    for section in SECTIONS:
        getattr(options, section).check(options)
    _check_numbers(options)
    _check_engine(options)
    for registry, part in _parts(options):
        # A registered part without arguments is ours and is known to work, so it need not be imported.
        if part.name in registry and not part.arguments:
            continue
        registry.resolve(part)
    check_reward_parts(options)
    check_that_all_is_read(options, spec)


def check_that_all_is_read(options: Options, spec: AlgorithmSpec) -> None:
    """Refuses an option that was changed although nothing reads it.

    Raises:
        OptionError: names key, value, and the condition under which it would be read.
    """
    defaults = Options.of(spec.options)
    for key, field in OPTIONS.items():
        if field.read_with is None or options.value(key) == defaults.value(key) or field.read_with.holds(options):
            continue
        refuse(key, _written(options.value(key)), f"is read only with {field.read_with.words}; leave it out")


def _check_numbers(options: Options) -> None:
    """Refuses numbers that the squares of float32 do not hold: nothing would train, or everything would be infinite."""
    for key in OPTIONS:
        if key == "env_config":
            continue
        for number in _floats(options.value(key)):
            if number and not _SMALLEST <= abs(number) <= _LARGEST:
                refuse(
                    key,
                    _written(options.value(key)),
                    f"{number:g} is beyond what is computed in float32; give 0 or a number from {_SMALLEST:g} to {_LARGEST:g}",
                )


def _floats(value: Any) -> Iterator[float]:
    if isinstance(value, float):
        yield value
    elif isinstance(value, Section):
        yield from (number for name in type(value).model_fields for number in _floats(getattr(value, name)))
    elif isinstance(value, list | tuple):
        yield from (number for one in value for number in _floats(one))


def _comparable(options: Options, key: str) -> Any:
    """Returns an option's value; a window as long as the cap and `window_length=None` give the same."""
    return options.window if key == "window_length" else options.value(key)


def _written(value: Any) -> Any:
    if isinstance(value, Section):
        return value.model_dump(exclude_defaults=True)
    return value.flat() if isinstance(value, PartSpec | RewardParts) else value


def _parts(options: Options) -> list[tuple[Registry, PartSpec]]:
    return [
        (ADVANTAGES, options.advantages.advantage_estimator),
        (POLICY_LOSSES, options.policy_loss.policy_loss),
    ]


def check_model(options: Options) -> None:
    """Checks that the models exist and are whole, that prompt and response fit the context, and that the critic has enough layers.

    Raises:
        OptionError: no such model, cut or missing weights, too short a context, too few layers, or a family that no engine runs in float16.
    """
    if options.models.policy_model is None:
        raise OptionError(
            "policy_model=None: which model to train is not given; set policy_model to a folder or hub id, for example "
            "tppo_rl/arithmetic-chain"
        )
    models = options.models
    for key, name in models.sources.items():
        load_model_config(key, name)
        check_weight_files(key, name)
    _check_float16(options)
    _check_room_for_answers(options)
    if models.critic_layers is not None and models.critic_model is not None:
        layers = load_model_config("critic", models.critic_model).get("num_hidden_layers", 0)
        if models.critic_layers > layers:
            raise OptionError(
                f"critic_layers={models.critic_layers}: its backbone {models.critic_model!r} has {layers}; give fewer, or "
                "null for all"
            )
    context = load_model_config("policy_model", options.models.policy_model).get("max_position_embeddings")
    needed = options.rollout.max_prompt_length + options.rollout.max_response_length
    if context is not None and needed > context:
        raise OptionError(
            f"max_response_length={options.rollout.max_response_length}: with max_prompt_length={options.rollout.max_prompt_length} that "
            f"is {needed} tokens, but the context of policy_model={options.models.policy_model!r} holds {context}; lower "
            f"max_response_length to {max(context - options.rollout.max_prompt_length, 1)} or less"
        )


def _check_room_for_answers(options: Options) -> None:
    critic = options.models.critic_model
    if critic is None or not options.critic.critic_sees_answer:
        return
    context = load_model_config("critic", critic).get("max_position_embeddings")
    needed = options.rollout.max_prompt_length + options.rollout.max_response_length + ANSWER_TOKENS
    if context is not None and needed > context:
        refuse(
            "critic_sees_answer",
            True,
            f"with {ANSWER_TOKENS} tokens of an answer the critic may read {needed}, and the context of {critic!r} holds {context}; lower "
            f"max_response_length by {needed - context}, or set it to false",
        )


def _check_float16(options: Options) -> None:
    model = str(options.models.policy_model)
    family = load_model_config("policy_model", model).get("model_type")
    if options.models.dtype == "float16" and family in _NOT_IN_FLOAT16:
        raise OptionError(
            f"dtype='float16': activations of policy_model={model!r} ({family}) overflow in it, and vLLM refuses it; set dtype to "
            "'bfloat16' or 'float32'"
        )


def check_environment(options: Options) -> None:
    """Checks that the environment is registered and takes its `env_config`.

    Raises:
        OptionError: unknown environment or bad `env_config`.
    """
    from tppo_rl.config.text_envs import make_text_env

    environment = options.environment
    if environment.env is None:
        raise OptionError(
            "env=None: which environment to train on is not given; set env, for example tppo_rl/ArithmeticChain-v0"
        )
    if "split" in environment.env_config:
        raise OptionError(
            f"env_config.split={environment.env_config['split']!r}: training takes the train split and evaluation the "
            "held-out one; remove the key"
        )
    _check_env_config_keys(environment.env, environment.env_config)
    env = make_text_env(environment, "heldout")
    try:
        _check_correctness_is_known(options, env.unwrapped)
        _warn_of_repeated_prompts(options, getattr(env.unwrapped, "num_problems", None))
        check_reward_columns(options, env)
        _check_answer_is_known(options, env)
    finally:
        env.close()


def _check_answer_is_known(options: Options, env: Any) -> None:
    if options.critic.critic_sees_answer and ground_truth(env.reset(seed=0)[1]) is None:
        refuse(
            "critic_sees_answer",
            True,
            f"the info of {options.environment.env} has neither gold_answer nor answer; set it to false, or let reset give one of them",
        )


def _check_env_config_keys(env: str, env_config: Mapping[str, Any]) -> None:
    """Refuses keys that the environment's class does not take, where its signature says what it takes."""
    from tppo_rl.config.text_envs import env_spec

    place = env_spec(env).entry_point
    try:
        found = find_object("env", place) if isinstance(place, str) else place
    except OptionError:
        return
    if not inspect.isclass(found):
        return
    names: set[str] = set()
    for base in found.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    else:
        return
    known = sorted(names - {"self", "split"})
    for key in sorted(env_config.keys() - names):
        words = [f"env_config.{name}" for name in known]
        message = unknown_key(f"env_config.{key}", env_config[key], words).partition("; ")[0]
        raise OptionError(f"{message}; {env} takes {', '.join(known)}")


def _check_correctness_is_known(options: Options, env: Any) -> None:
    """Refuses rewards that take from the environment what it says beforehand that it does not know."""
    gives_correct = getattr(env, "gives_correct", True)
    asked = {part.spec.name for part in options.rewards.rewards}
    refused = set() if gives_correct else asked & _REWARDS_BY_CORRECTNESS
    if not getattr(env, "gives_rewards", gives_correct):
        refused |= asked & {"environment"}
    for name in sorted(refused):
        why = getattr(
            env, "without_correct", "the environment does not say what is right; give a reward function of your own"
        )
        raise OptionError(f"rewards={name!r}: {why}")


def _warn_of_repeated_prompts(options: Options, num_problems: int | None) -> None:
    asked = options.evaluation.evaluation_duration
    if options.evaluation.evaluation_interval is not None and num_problems is not None and num_problems < asked:
        warnings.warn(
            f"evaluation_duration={asked}: there {'is 1 held-out question' if num_problems == 1 else f'are {num_problems} held-out questions'}. "
            "Greedily each is answered once; sampled, some are answered more than once, and the standard error is larger than it "
            f"says. Set it to {num_problems} or less",
            OptionWarning,
            stacklevel=3,
        )


def _check_engine(options: Options) -> None:
    engine = options.rollout.engine
    if engine.type != "vllm":
        if engine.type not in ENGINES:
            ENGINES.find(engine.type)
        return
    arguments = engine.arguments
    if arguments.get("linear", "in_place") not in ("in_place", "packed"):
        raise OptionError(f"engine.linear={arguments['linear']!r}: must be 'in_place' or 'packed'")
    _check_steps(arguments)
    for key in sorted(_OPTIONS_OF_ENGINE.keys() & arguments.keys()):
        raise OptionError(f"engine.{key}={arguments[key]!r}: {_OPTIONS_OF_ENGINE[key]}")
    unknown = set(arguments) - VLLM_OWN_KEYS
    vllm_keys = vllm_engine_args() if unknown else {}
    known = [f"engine.{name}" for name in {*EngineOptions.model_fields, *VLLM_OWN_KEYS, *vllm_keys}]
    for key in sorted(unknown - vllm_keys.keys()):
        raise OptionError(unknown_key(f"engine.{key}", arguments[key], known))
    for key, value in arguments.items():
        check_engine_argument(key, value, vllm_keys.get(key, frozenset()))
    check_sleep(options)
    needed = options.rollout.max_prompt_length + options.rollout.max_response_length
    if (length := arguments.get("max_model_len")) is not None and length < needed:
        raise OptionError(
            f"engine.max_model_len={length!r}: max_prompt_length={options.rollout.max_prompt_length} and max_response_length="
            f"{options.rollout.max_response_length} make {needed} tokens, which the engine would refuse; remove the key"
        )


def _check_steps(arguments: Mapping[str, Any]) -> None:
    """Refuses what would let steps be under way, with old weights, when new ones arrive."""
    for key, harmless in (("async_scheduling", False), ("pipeline_parallel_size", 1)):
        if arguments.get(key) not in (None, harmless):
            raise OptionError(
                f"engine.{key}={arguments[key]!r}: the engine would begin a step before the last one has ended, and new weights "
                f"would come between; remove the key{', and set tensor_parallel_size' if harmless else ''}"
            )
    if arguments.get("multiprocessing") and arguments.get("scheduler_cls") is not None:
        raise OptionError(
            f"engine.scheduler_cls={arguments['scheduler_cls']!r}: with engine.multiprocessing the engine's steps need our scheduler; "
            "remove one of the two"
        )
