"""Configuration of T-PPO on RLlib's builder; the siblings inherit it."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core.rl_module.rl_module import RLModuleSpec

from tppo_rl.algorithms import algorithm_class
from tppo_rl.base_models import resolve_model
from tppo_rl.config.checks import (
    check_attention,
    check_environment,
    check_model,
    check_options,
    check_parallel_critic,
    unknown_key,
)
from tppo_rl.config.options import DerivedOptions, Options
from tppo_rl.config.presets import PRESETS
from tppo_rl.core.errors import OptionError
from tppo_rl.learner.learner import TPPOLearner
from tppo_rl.learner.learner_group import TPPOLearnerGroup
from tppo_rl.learner.module import LanguageModelModule
from tppo_rl.rollout.env_runner import VLLMEnvRunner
from tppo_rl.rollout.pump import REQUESTS_IN_FLIGHT


class TPPOConfig(AlgorithmConfig, DerivedOptions):
    """Configuration of T-PPO; every option with unit, default and meaning is in `tppo_rl.config.options.Options`.

    An unknown attribute, key, or a bad value raises `OptionError` (a ValueError) before Ray starts anything.
    """

    algorithm: ClassVar[str] = "TPPO"
    """Name of the preset (`tppo_rl.config.presets`) and of the algorithm class."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or algorithm_class(self.algorithm))
        for key, value in (Options().model_dump() | dict(PRESETS[self.algorithm].options)).items():
            setattr(self, key, value)
        self.env_runner_cls = VLLMEnvRunner
        self.max_requests_in_flight_per_env_runner = REQUESTS_IN_FLIGHT
        self.sample_timeout_s = None
        self.delay_between_env_runner_restarts_s = 1.0
        # The driver only passes fragments on; with a CPU of its own, a trial would not fit on two.
        self.num_cpus_for_main_process = 0
        # Env-runners have no connectors whose state would have to be synchronized.
        self._dont_auto_sync_env_runner_states = True
        self._settable = frozenset(vars(self))

    def __setattr__(self, key: str, value: Any) -> None:
        settable = getattr(self, "_settable", None)
        if settable is not None and key not in settable and not key.startswith("_") and not hasattr(type(self), key):
            raise OptionError(unknown_key(key, value, settable))
        super().__setattr__(key, value)

    def language_model(
        self,
        policy_model: str = NotProvided,
        *,
        dtype: str = NotProvided,
        weights_dtype: str = NotProvided,
        critic: str | None = NotProvided,
        critic_layers: int | None = NotProvided,
        reference_model: str = NotProvided,
        lora: dict[str, Any] | None = NotProvided,
        attention: str = NotProvided,
    ) -> Self:
        """Sets the models: folder or hub id, number formats, where the critic's backbone and the reference come from.

        With `lora` adapters train in place of all weights.
        """
        return self._set(locals())

    def env_runners(  # type: ignore[override]
        self,
        *,
        window_length: int | None = NotProvided,
        max_response_length: int = NotProvided,
        max_prompt_length: int = NotProvided,
        sampling: dict[str, Any] = NotProvided,
        engine: dict[str, Any] = NotProvided,
        engine_steps_per_sample: int | None = NotProvided,
        group_size: int = NotProvided,
        dynamic_sampling: bool = NotProvided,
        dynamic_sampling_max_rounds: int = NotProvided,
        rewards: str = NotProvided,
        overlong_share: float | None = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets windows, caps, sampling, groups, rewards and engine; RLlib's own options go on to RLlib."""
        super().env_runners(**kwargs)
        return self._set(locals())

    def learners(  # type: ignore[override]
        self, *, distributed: str = NotProvided, gradient_checkpointing: bool = NotProvided, **kwargs: Any
    ) -> Self:
        """Sets what learners share and whether they keep activations; RLlib's own options go on to RLlib."""
        super().learners(**kwargs)
        return self._set(locals())

    def training(  # type: ignore[override]
        self,
        *,
        critic_lr: float | list[list[float] | tuple[float, float]] = NotProvided,
        lr_warmup_updates: int = NotProvided,
        adam_betas: tuple[float, float] = NotProvided,
        weight_decay: float = NotProvided,
        advantage_estimator: str = NotProvided,
        lambda_: float | str = NotProvided,
        lambda_alpha: float = NotProvided,
        boundary_value: str = NotProvided,
        unfinished_advantage_scale: float = NotProvided,
        hindsight: bool = NotProvided,
        advantage_normalisation: str = NotProvided,
        advantage_normalisation_scope: str = NotProvided,
        group_scale: bool = NotProvided,
        critic_targets: str = NotProvided,
        critic_lambda: float = NotProvided,
        value_batch_tokens: int | None = NotProvided,
        clip_low: float = NotProvided,
        clip_high: float = NotProvided,
        dual_clip: float | None = NotProvided,
        loss_mean: str = NotProvided,
        value_clip: float | None = NotProvided,
        entropy_coef: float = NotProvided,
        kl_coef: float = NotProvided,
        kl_estimator: str = NotProvided,
        kl_in: str = NotProvided,
        positive_lm_coef: float = NotProvided,
        off_policy_correction: str = NotProvided,
        importance_cap: float = NotProvided,
        sequence_mask: tuple[float, float] | None = NotProvided,
        policy_token_share: float = NotProvided,
        micro_batch_tokens: int = NotProvided,
        packing: bool = NotProvided,
        context_gradient: bool = NotProvided,
        context_cache_tokens: int = NotProvided,
        critic_num_epochs: int = NotProvided,
        critic_minibatch_size: int | None = NotProvided,
        critic_warmup_updates: int = NotProvided,
        critic_grad_clip: float | None = NotProvided,
        parallel_critic: bool = NotProvided,
        **kwargs: Any,
    ) -> Self:
        """Sets estimator, losses, optimizers and batch sizes; RLlib's own options go on to RLlib."""
        super().training(**kwargs)
        return self._set(locals())

    def pipeline(
        self,
        *,
        mode: str = NotProvided,
        max_staleness: int = NotProvided,
        kv_on_update: str = NotProvided,
        log_prob_gap_alarm: float | None = NotProvided,
    ) -> Self:
        """Sets how sampling and training are coupled."""
        return self._set(locals())

    def evaluation(self, *, evaluation_interval_unit: str = NotProvided, **kwargs: Any) -> Self:  # type: ignore[override]
        """Sets what the interval between evaluations counts; RLlib's own options go on to RLlib."""
        super().evaluation(**kwargs)
        return self._set(locals())

    def reporting(self, *, rollout_log_fragments: int = NotProvided, **kwargs: Any) -> Self:  # type: ignore[override]
        """Sets how many fragments are kept for reading; RLlib's own options go on to RLlib."""
        super().reporting(**kwargs)
        return self._set(locals())

    def update_from_dict(self, config_dict: dict[str, Any]) -> Self:
        """Sets options by key, as YAML files and Tune do.

        Raises:
            OptionError: a key that neither this project nor RLlib knows.
        """
        settable = getattr(self, "_settable", frozenset(vars(self)))
        for key, value in config_dict.items():
            # `to_dict`, which Tune calls on a config, renames some attributes, such as `lambda_`.
            attribute = self._translate_special_keys(key, warn_deprecated=False)
            if not key.startswith("_") and attribute not in settable and not hasattr(type(self), attribute):
                raise OptionError(unknown_key(key, value, settable))
        return super().update_from_dict(config_dict)

    def options(self) -> Options:
        """The checked options of `tppo_rl.config.options`."""
        return check_options({key: getattr(self, key) for key in Options.model_fields}, algorithm=self.algorithm)

    def validate(self) -> None:
        """Checks everything that can be checked without an engine.

        Raises:
            OptionError: names key, value and remedy.
        """
        # RLlib makes the evaluation config out of this one, with the number of evaluation env-runners put in.
        if not self.in_evaluation:
            options = self.options()
            check_model(options)
            check_environment(options)
            check_attention(options, num_gpus_per_learner=self.num_gpus_per_learner)
            check_parallel_critic(options, num_gpus_per_learner=self.num_gpus_per_learner)
        if self.evaluation_parallel_to_training:
            raise OptionError(
                "evaluation_parallel_to_training=True: evaluation shares engines with training; set it to False"
            )
        super().validate()

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        model_config = {
            "policy_model": resolve_model(self.policy_model),
            "critic": self.critic if self.critic in ("separate", None) else resolve_model(self.critic),
            "critic_layers": self.critic_layers,
            "dtype": self.dtype,
            "lora": self.lora,
            "attention": self.attention,
            "weights_dtype": self.weights_dtype,
            "gradient_checkpointing": self.gradient_checkpointing,
        }
        if self.kl_coef:
            reference = self.policy_model if self.reference_model == "initial" else self.reference_model
            model_config["reference_model"] = resolve_model(reference)
        return RLModuleSpec(module_class=LanguageModelModule, model_config=model_config)

    def get_default_learner_class(self) -> type:
        return TPPOLearner

    def build_learner_group(
        self, *, env: Any = None, spaces: Any = None, rl_module_spec: Any = None, placement_group: Any = None
    ) -> TPPOLearnerGroup:
        spec = rl_module_spec or self.get_multi_rl_module_spec(env=env, spaces=spaces)
        return TPPOLearnerGroup(config=self.copy(), module_spec=spec, placement_group=placement_group)

    def batch_tokens(self) -> int:
        """Sampled tokens of one update, over all learners."""
        return int(self.train_batch_size_per_learner * max(1, self.num_learners))

    def _set(self, arguments: dict[str, Any]) -> Self:
        """Sets those of a builder method's arguments that are options of ours and were given."""
        for key, value in arguments.items():
            if key in Options.model_fields and value is not NotProvided:
                setattr(self, key, value)
        return self
