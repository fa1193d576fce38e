# Written by docs/generate.py from the code; do not edit.
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

METHODS: dict[str, tuple[tuple[str, ...], str]]
FIRST: dict[str, str]

def option_keys(method: str) -> list[str]: ...

class OptionBuilder(AlgorithmConfig):
    def language_model(
        self,
        policy_model: str | None = ...,
        *,
        critic: str | None = ...,
        critic_lora: Mapping[str, Any] | None = ...,
        critic_layers: int | None = ...,
        reference_model: str = ...,
        dtype: Literal["float32", "bfloat16", "float16"] = ...,
        head_dtype: Literal["float32"] | None = ...,
        weights_dtype: Literal["float32", "bfloat16"] = ...,
        lora: Mapping[str, Any] | None = ...,
        attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention"] = ...,
        system_prompt: str | None = ...,
        prompt_template: str | None = ...,
        chat_template_args: Mapping[str, Any] = ...,
        end_of_turn: int | str | Sequence[int | str] = ...,
        stop: str | Sequence[str] = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets the models, their number formats, where critic and reference come from, and the text around prompts."""

    def env_runners(
        self,
        *,
        num_env_runners: int = ...,
        num_envs_per_env_runner: int = ...,
        num_cpus_per_env_runner: float = ...,
        num_gpus_per_env_runner: float = ...,
        window_length: int | None = ...,
        max_response_length: int = ...,
        max_prompt_length: int = ...,
        sampling: Mapping[str, Any] = ...,
        engine: Mapping[str, Any] = ...,
        engine_steps_per_sample: int | None = ...,
        group_size: int = ...,
        dynamic_sampling: bool = ...,
        dynamic_sampling_max_rounds: int = ...,
        rewards: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] = ...,
        on_reward_failure: Literal["drop", "retry", "wrong"] = ...,
        truncated_responses: Literal["score", "mask", "wrong"] = ...,
        wrong_reward: float | None = ...,
        max_failed_fraction: float = ...,
        overlong_fraction: float | None = ...,
        scoring_workers: Literal["auto"] | int = ...,
        scoring_deadline_s: float = ...,
        scoring_memory_gib: float | None = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets windows, caps, sampling, groups, rewards, scoring workers and engine."""

    def learners(
        self,
        *,
        num_learners: int = ...,
        num_cpus_per_learner: float | Literal["auto"] = ...,
        num_gpus_per_learner: float = ...,
        distributed: Literal["ddp", "fsdp"] = ...,
        gradient_checkpointing: bool = ...,
        learner_timeout_s: float = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets what learners hold, share and compute at a time."""

    def resources(
        self,
        *,
        placement: Literal["colocated", "disaggregated", "cluster"] | None = ...,
        gpus: str | None = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets where engines and learners stand on GPUs."""

    def training(
        self,
        *,
        train_batch_size_per_learner: int = ...,
        minibatch_size: int | None = ...,
        num_epochs: int = ...,
        policy_token_fraction: float = ...,
        lr: float | Sequence[Sequence[float]] = ...,
        lr_warmup_updates: int = ...,
        adam_betas: Sequence[float] = ...,
        weight_decay: float = ...,
        grad_clip: float | None = ...,
        max_skipped_updates: int = ...,
        micro_batch_tokens: int = ...,
        packing: bool = ...,
        context_gradient: bool = ...,
        context_cache_tokens: int = ...,
        advantage_estimator: str | Mapping[str, Any] = ...,
        gamma: float = ...,
        lambda_: float | Literal["length_adaptive"] = ...,
        lambda_alpha: float = ...,
        boundary_value: Literal["hold", "bootstrap", "tail_corrected"] = ...,
        unfinished_advantage_scale: float | Literal["auto"] = ...,
        hindsight: bool = ...,
        advantage_normalization: Literal["none", "whiten", "scale"] = ...,
        advantage_normalization_scope: Literal["batch", "group"] = ...,
        group_scale: bool = ...,
        policy_loss: str | Mapping[str, Any] = ...,
        clip_low: float = ...,
        clip_high: float = ...,
        dual_clip: float | None = ...,
        loss_aggregation: Literal["token", "response"] = ...,
        entropy_coef: float = ...,
        kl_coef: float = ...,
        kl_estimator: Literal["k1", "k2", "k3"] = ...,
        kl_in: Literal["loss", "reward"] = ...,
        positive_lm_coef: float = ...,
        off_policy_correction: Literal["behavior", "none", "truncated_importance", "decoupled"] = ...,
        importance_cap: float = ...,
        sequence_mask: Sequence[float] | None = ...,
        critic_lr: float | Sequence[Sequence[float]] = ...,
        critic_loss: Literal["auto", "squared_error", "cross_entropy", "hl_gauss"] = ...,
        value_range: Sequence[float] | None = ...,
        value_bins: int = ...,
        critic_initial_value: float | Literal["mean_return"] | None = ...,
        critic_sees_answer: bool = ...,
        critic_targets: Literal["monte_carlo", "lambda_returns", "include_unfinished"] = ...,
        critic_lambda: float = ...,
        value_batch_tokens: int | None = ...,
        value_clip: float | None = ...,
        critic_num_epochs: int = ...,
        critic_minibatch_size: int | None = ...,
        critic_warmup_updates: int = ...,
        critic_warmup_responses: int = ...,
        critic_warmup_slope: float | None = ...,
        critic_grad_clip: float | None = ...,
        parallel_critic: bool = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets estimator, losses, optimizers and batch sizes."""

    def pipeline(
        self,
        *,
        mode: Literal["async", "sync"] = ...,
        partial_rollouts: bool = ...,
        max_staleness: int = ...,
        max_queued_batches: float | None = ...,
        old_responses: Literal["wait", "drop"] = ...,
        kv_on_update: Literal["recompute", "keep"] = ...,
        weight_transport: Literal["object_store", "broadcast"] = ...,
        log_prob_diff_alarm: float | None = ...,
        start_timeout_s: float = ...,
        env_runner_timeout_s: float = ...,
        heartbeat_timeout_s: float = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets how sampling and training are coupled."""

    def evaluation(
        self,
        *,
        evaluation_interval: int | None = ...,
        evaluation_interval_unit: Literal["iterations", "tokens"] = ...,
        evaluation_duration: int = ...,
        evaluation_num_env_runners: int = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets held-out evaluations."""

    def reporting(
        self,
        *,
        seed: int = ...,
        rollout_log_fragments: int = ...,
        record_episodes: int = ...,
        record_events: bool = ...,
        record_batches: bool = ...,
        replay_of: str | None = ...,
        results_folder: str | None = ...,
        trackers: Mapping[str, Any] = ...,
        runtime_env: Mapping[str, Any] | None = ...,
        **kwargs: Any,
    ) -> Self:
        """Sets seed and what a run leaves behind."""
