"""RLlib's host of the options: a config whose attributes are the options by their flat keys."""

from __future__ import annotations

import sys
from typing import Any, ClassVar, Self

from ray.cloudpickle import register_pickle_by_value
from ray.rllib.callbacks.callbacks import RLlibCallback
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils import force_list
from ray.util.debug import log_once

from tppo_rl.algorithms.builder import OptionBuilder
from tppo_rl.algorithms.found_gpus import placed
from tppo_rl.algorithms.learner_nodes import learner_bundles
from tppo_rl.algorithms.rllib_internals import attribute_of_key, leave_env_runner_states
from tppo_rl.base_models import resolve_model
from tppo_rl.config.attention import attention_kernels, check_attention
from tppo_rl.config.checks import check_environment, check_model, check_rules
from tppo_rl.config.installation import check_installation
from tppo_rl.config.options import OPTIONS, RENAMED_KEYS, Options, with_new_names
from tppo_rl.config.places import absolute_place
from tppo_rl.config.rllib_options import check_callback_classes, check_rllib_keys, unread_rllib_keys, with_callbacks
from tppo_rl.config.sections.models import SEPARATE, SHARED
from tppo_rl.config.value_forms import check_value_form, value_form_settings
from tppo_rl.config.vocabularies import check_vocabularies
from tppo_rl.core.algorithm_spec import AlgorithmSpec
from tppo_rl.core.errors import OptionError, unknown_key
from tppo_rl.core.waiting import stage
from tppo_rl.learner.learner import TPPOLearner
from tppo_rl.learner.learner_group import TPPOLearnerGroup
from tppo_rl.learner.lora import check_adapters
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.rollout.chat import check_chat
from tppo_rl.rollout.env_runner import VLLMEnvRunner
from tppo_rl.rollout.train_queue import REQUESTS_IN_FLIGHT


class LanguageModelConfig(OptionBuilder):
    """Configuration of an algorithm; every option with unit, default and meaning is in `tppo_rl.config.sections`.

    `options` holds them typed and in sections; that is what everything else reads. An unknown attribute or key, or a bad value
    raises `OptionError` (a ValueError) before Ray starts anything.
    """

    spec: ClassVar[AlgorithmSpec]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or self.algorithm_class())
        for key, value in Options.of(self.spec.options).flat().items():
            setattr(self, key, value)
        self.env_runner_cls = VLLMEnvRunner
        self.max_requests_in_flight_per_env_runner = REQUESTS_IN_FLIGHT
        self.metrics_num_episodes_for_smoothing = 512
        self.delay_between_env_runner_restarts_s = 1.0
        # One that has answered a moment ago takes RLlib's state, which holds no weights, at once, or hangs.
        self.env_runner_restore_timeout_s = 60.0
        # RLlib would wait for their start without end.
        self.validate_env_runners_after_construction = False
        self.create_env_on_local_worker = True
        # The driver only passes fragments on; with a CPU of its own, a trial would not fit on two.
        self.num_cpus_for_main_process = 0
        leave_env_runner_states(self)
        self._settable = frozenset(vars(self))
        # No settings: which options the user has given, and what the placement has changed.
        self._given: frozenset[str] = frozenset()
        self._before_placement: dict[str, tuple[Any, Any]] = {}

    @classmethod
    def algorithm_class(cls) -> type:
        """RLlib's class of the algorithm."""
        from tppo_rl.algorithms.rllib_classes import rllib_classes

        return rllib_classes(cls.spec)[0]

    @property
    def options(self) -> Options:
        """The options, typed and in sections.

        Raises:
            OptionError: a wrong type, or a value out of bounds.
        """
        return Options.of({key: getattr(self, key) for key in OPTIONS})

    def __setattr__(self, key: str, value: Any) -> None:
        settable = getattr(self, "_settable", None)
        if settable is not None and not key.startswith("_"):
            ((key, value),) = with_new_names({key: value}).items()
            if key not in settable and not hasattr(type(self), key):
                raise OptionError(unknown_key(key, value, settable))
            value = absolute_place(key, value)
            if key in OPTIONS:
                self._given |= {key}
                self._before_placement.pop(key, None)
        super().__setattr__(key, value)

    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Sets options by key, as YAML files and Tune do.

        Raises:
            OptionError: a key that neither this project nor RLlib knows.
        """
        settable = getattr(self, "_settable", frozenset(vars(self)))
        renamed = with_new_names(config_dict) if any(key in RENAMED_KEYS for key in config_dict) else config_dict
        for key, value in renamed.items():
            attribute = attribute_of_key(self, key)
            if not key.startswith("_") and attribute not in settable and not hasattr(type(self), attribute):
                raise OptionError(unknown_key(key, value, settable))
        found = with_callbacks(renamed)
        for key, value in found.items():
            if value is not renamed[key]:
                # Env-runners get the object itself: they cannot import a file by the name that its module has here.
                register_pickle_by_value(sys.modules[value.__module__])
        given = self._given | config_dict.get("_given", found.keys() & OPTIONS.keys())
        super().update_from_dict(found)
        # A config that another one has written names all options; it says itself which of them its user gave.
        self._given = given
        return self

    def validate(self) -> None:
        """Checks everything that can be checked without an engine.

        Raises:
            OptionError: names key, value and remedy.
        """
        # RLlib makes the evaluation config out of this one, with the number of evaluation env-runners put in.
        if not self.in_evaluation:
            self._place()
            self._check_rllib_options()
            options = self.options
            check_rules(options, self.spec)
            if options.rollout.engine.type == "vllm":
                check_installation()
            check_model(options)
            check_vocabularies(options)
            check_adapters(options)
            check_environment(options)
            check_attention(options)
            check_chat(options)
            check_value_form(options)
        if self.evaluation_parallel_to_training:
            raise OptionError(
                "evaluation_parallel_to_training=True: evaluation shares engines with training; set it to False"
            )
        # RLlib says once that this is the new API stack, which is the only one here.
        log_once(f"{self.algo_class.__name__}_on_new_api_stack")
        super().validate()

    def _place(self) -> None:
        """Sets what the placement gives; an earlier one is taken back before."""
        for key, (there, before) in self._before_placement.items():
            if getattr(self, key) == there:
                super().__setattr__(key, before)
        self._before_placement = {}
        if self.placement is None:
            return
        found = placed({key: getattr(self, key) for key in OPTIONS if key in self._given}, self.spec, join=True)
        assert found is not None
        for key, value in found.values.items():
            self._before_placement[key] = value, getattr(self, key)
            super().__setattr__(key, value)

    def _check_rllib_options(self) -> None:
        default = type(self)()
        # RLlib itself rewrites `policies` when a config is built.
        unread = {key for key in unread_rllib_keys(OPTIONS) if not key.startswith("_")} - {"policies"}
        changed = {key: getattr(self, key) for key in unread if getattr(self, key) != getattr(default, key)}
        if self.is_multi_agent:
            changed["policies"] = self.policies
        check_rllib_keys(changed, OPTIONS)
        check_callback_classes(force_list(self.callbacks_class), RLlibCallback)

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        options = self.options
        models = options.models
        own_critic = models.critic not in (SEPARATE, SHARED, None)
        model_config = {
            "policy_model": resolve_model(str(models.policy_model)),
            "critic": resolve_model(str(models.critic)) if own_critic else models.critic,
            "critic_layers": models.critic_layers,
            "on_policy_weights": list(models.on_policy_weights(options)),
            "value_form": value_form_settings(options),
            "dtype": models.dtype,
            "head_dtype": models.head_dtype,
            **models.adapters,
            "attention": attention_kernels(options),
            "weights_dtype": models.weights_dtype,
            "gradient_checkpointing": options.learners.gradient_checkpointing,
        }
        if options.policy_loss.kl_coef:
            model_config["reference_model"] = resolve_model(str(models.reference))
        return RLModuleSpec(module_class=LanguageModelModule, model_config=model_config)

    def get_default_learner_class(self) -> type:
        return TPPOLearner

    def build_learner_group(
        self, *, env: Any = None, spaces: Any = None, rl_module_spec: Any = None, placement_group: Any = None
    ) -> TPPOLearnerGroup:
        spec = rl_module_spec or self.get_multi_rl_module_spec(env=env, spaces=spaces)
        with stage("loading the model"):
            bundles = placement_group or learner_bundles(self)
            return TPPOLearnerGroup(config=self.copy(), module_spec=spec, placement_group=bundles)
