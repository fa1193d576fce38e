"""Every option of a run that is ours or that we rely on: type, unit, default, bounds; rules between them are in `rules`.

The defaults here are T-PPO's; what other algorithms change is in `presets`. One schema serves the builder, YAML files, the command line and Tune. It imports neither torch nor Ray, so a mistake
is reported before anything heavy is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt


class DerivedOptions:
    """What follows from options: for the schema, and for RLlib's config, which has attributes of the same names."""

    if TYPE_CHECKING:
        mode: Any
        num_env_runners: Any
        num_envs_per_env_runner: Any
        window_length: Any
        max_response_length: Any

    @property
    def window(self) -> int:
        """Most sampled tokens of a fragment."""
        return int(self.max_response_length if self.window_length is None else self.window_length)

    @property
    def whole_responses(self) -> bool:
        """Whether every step of a slot is one whole response: nothing is cut, and no slot is refilled until all ended."""
        return bool(self.mode == "sync" and self.window == self.max_response_length)

    @property
    def num_slots(self) -> int:
        """Slots of all env-runners."""
        return int(self.num_envs_per_env_runner * max(1, self.num_env_runners))


class Options(BaseModel, DerivedOptions):
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
    critic: str | None = Field(
        "separate",
        description="`separate`: own backbone started from the policy's folder; a folder or hub id: its backbone; None: no "
        "critic (group-relative advantages).",
    )
    critic_layers: PositiveInt | None = Field(
        None, description="First so many layers of its backbone that the critic has, a cheaper critic; None: all."
    )
    reference_model: str = Field(
        "initial",
        description="Model that `kl_coef` keeps the policy close to: `initial` is `policy_model`; else folder or hub id.",
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Of policy, critic and engine.")
    weights_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Of the trainer's weights, gradients and moments: `float32` master weights, or `bfloat16`: half the "
        "memory, small steps are rounded away.",
    )

    lora: dict[str, Any] | None = Field(
        None,
        description="Trains adapters of policy and critic in place of their weights: `rank`, `alpha` (default 2 * rank) and "
        "`target_modules` (names of linear layers, or `all-linear`, the default); None: trains all weights.",
    )

    attention: Literal["sdpa", "flash_attention_2", "flex_attention"] = Field(
        "sdpa", description="Attention kernels of the learners; all but `sdpa` need a GPU."
    )

    # .env_runners()
    num_env_runners: int = Field(1, ge=0, description="Env-runner actors; 0 samples in the main process (sync only).")
    num_envs_per_env_runner: PositiveInt = Field(32, description="Slots of an env-runner.")
    window_length: PositiveInt | None = Field(
        64, description="Most sampled tokens of a fragment; None: the whole response (PPO)."
    )
    max_response_length: PositiveInt = Field(256, description="Cap on all tokens after the prompt.")
    max_prompt_length: PositiveInt = Field(256, description="Longest prompt, in tokens; a longer one is an error.")
    sampling: dict[str, Any] = Field(
        {"temperature": 1.0}, description="`temperature` > 0 of training responses; log-probs are taken after it."
    )
    engine: dict[str, Any] = Field(
        {},
        description="`device` (`cpu`, `cuda`), `kv_cache_gib` (CPU), `linear` (CPU: `in_place`, or `packed`: faster steps of "
        "wide models, slow updates), `multiprocessing`, and vLLM's EngineArgs. Evaluations fill `max_num_seqs`, by default the "
        "number of slots.",
    )
    engine_steps_per_sample: PositiveInt | None = Field(
        None, description="Engine steps of one request to an env-runner in async mode; None is min(window_length, 32)."
    )

    group_size: PositiveInt = Field(
        1, description="Responses to each prompt (GRPO 64, DAPO and VAPO 16); 1: no groups."
    )
    dynamic_sampling: bool = Field(
        False,
        description="Groups whose returns are all equal teach nothing: they are dropped, counted, and replaced (DAPO). With "
        "`rewards` of verdicts those that are all right or all wrong, whatever `overlong_share` takes off.",
    )
    dynamic_sampling_max_rounds: PositiveInt = Field(
        10, description="Rounds of sampling after which an update takes the groups that there are."
    )
    rewards: Literal["environment", "zero_one", "plus_minus_one"] = Field(
        "environment",
        description="`environment`: what it returns; else its verdict at the episode's end, right or wrong: 1 or 0, or 1 or "
        "-1 (DAPO).",
    )
    overlong_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Last share of `max_response_length` over which a penalty grows linearly to -1, added to the reward "
        "(DAPO: 0.2); None: no penalty.",
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
    lr: PositiveFloat | list[list[float] | tuple[float, float]] = Field(
        1e-6,
        description="Learning rate of the policy: a number, or RLlib's schedule `[[tokens, rate], …]` over the tokens trained, "
        "with straight lines between, such as `[[0, 2e-4], [100000, 2e-5]]`.",
    )
    critic_lr: PositiveFloat | list[list[float] | tuple[float, float]] = Field(
        2e-6, description="Learning rate of the critic (VAPO: twice the policy's): a number or a schedule."
    )
    lr_warmup_updates: int = Field(
        0,
        ge=0,
        description="Updates over which the policy's learning rate rises linearly, counted after the critic's warm-up.",
    )
    adam_betas: tuple[float, float] | list[float] = Field((0.9, 0.99), description="AdamW's betas, both models.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW's weight decay, both models.")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount for each token (T-PPO: 1).")
    advantage_estimator: Literal["egae", "gae", "group_relative"] = Field(
        "egae",
        description="`egae` (T-PPO); `gae`: whole episodes only (PPO); `group_relative`: returns against those of the other "
        "responses to the prompt (GRPO), without a critic.",
    )
    lambda_: Annotated[float, Field(ge=0, le=1)] | Literal["length_adaptive"] = Field(
        0.95,
        description="Decay of the policy's advantages; `length_adaptive`: 1 - 1 / (lambda_alpha * l) for a response of l "
        "tokens so far (VAPO).",
    )
    lambda_alpha: float = Field(0.05, gt=0, description="alpha of the length-adaptive lambda (VAPO: 0.05).")
    boundary_value: Literal["hold", "bootstrap", "tail_corrected"] = Field(
        "hold",
        description="V(s_l) of an unfinished fragment: `hold` takes V(s_(l-1)) (T-PPO), `bootstrap` the critic's, "
        "`tail_corrected` the critic's with renormalised weights (arXiv 2602.03386).",
    )
    unfinished_advantage_scale: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Factor of the advantages of windows that did not finish. Where rewards come at the end, these are differences "
        "of the critic's values: noise, as far as it does not explain returns (`critic/explained_variance`). 1 is T-PPO; 0 trains "
        "finished windows alone.",
    )
    hindsight: bool = Field(
        False,
        description="When an episode has ended, its earlier windows are trained once more on the return minus the boundary "
        "value that was used, with truncated importance weights.",
    )
    advantage_normalisation: Literal["none", "whiten", "scale"] = Field(
        "none", description="`whiten`: mean 0 and standard deviation 1; `scale`: the latter alone."
    )
    advantage_normalisation_scope: Literal["batch", "group"] = Field(
        "batch", description="Normalise over the batch of all learners, or over the responses to each prompt in it."
    )
    group_scale: bool = Field(
        True, description="Divide group-relative advantages by the group's standard deviation; False is Dr. GRPO."
    )
    critic_targets: Literal["monte_carlo", "lambda_returns", "also_truncated"] = Field(
        "monte_carlo",
        description="`monte_carlo` returns of finished episodes (T-PPO, VAPO); their `lambda_returns`; `also_truncated`: "
        "A_t + V(s_t) on unfinished windows as well (what T-PPO argues against).",
    )
    critic_lambda: float = Field(1.0, ge=0, le=1, description="Decay of the critic's lambda-returns (VC-PPO: 1).")
    value_batch_tokens: PositiveInt | None = Field(
        None,
        description="Finished episodes are held until they have that many response tokens per learner; None: trained at once.",
    )
    clip_low: float = Field(0.2, ge=0, lt=1, description="Ratios below 1 - clip_low are clipped.")
    clip_high: float = Field(0.28, ge=0, description="Ratios above 1 + clip_high are clipped (DAPO: clip-higher).")
    dual_clip: float | None = Field(
        None, gt=1, description="With a negative advantage the loss is at most -dual_clip * A (arXiv 1912.09729: 3)."
    )
    loss_mean: Literal["token", "response"] = Field(
        "token", description="Over all tokens of a minibatch (DAPO), or over responses, each its tokens' mean (GRPO)."
    )
    value_clip: float | None = Field(
        None,
        gt=0,
        description="Most that a value may move from the one before the update, in units of reward (PPO2: 0.2).",
    )
    entropy_coef: float = Field(0.0, ge=0, description="Weight of the entropy bonus, per nat.")
    kl_coef: float = Field(
        0.0, ge=0, description="Weight of KL(policy || reference), per nat (GRPO: 0.04); 0 loads no reference."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Estimator of that divergence (GRPO: k3).")
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="KL as a term of the loss (GRPO), or off the rewards (PPO)."
    )
    positive_lm_coef: float = Field(
        0.0, ge=0, description="Weight of -log pi on responses that were right, as far as they ended (VAPO: 0.1)."
    )
    off_policy_correction: Literal["behaviour", "none", "truncated_importance", "decoupled"] = Field(
        "behaviour",
        description="Denominator of the ratio: `behaviour` log-probs of the engine; else those of the trainer before the "
        "update: `none` leaves staleness uncorrected, `decoupled` weighs tokens by trainer / engine (arXiv 2505.24298), "
        "`truncated_importance` by at most `importance_cap` of it.",
    )
    importance_cap: float = Field(
        2.0, gt=0, description="Largest importance weight of a token (truncated importance sampling, hindsight)."
    )
    sequence_mask: tuple[float, float] | list[float] | None = Field(
        None,
        description="Bounds on the geometric mean of a fragment's importance weights, outside of which its surrogate is left "
        "out, such as [0.5, 2].",
    )
    train_batch_size_per_learner: PositiveInt = Field(
        4096, description="Sampled tokens of an update, per learner (async; in sync one step of all slots)."
    )
    minibatch_size: PositiveInt | None = Field(
        None, description="Sampled tokens of an optimizer step, per learner; None: the whole batch."
    )
    micro_batch_tokens: PositiveInt = Field(2048, description="Tokens of one forward pass, padding included.")
    packing: bool = Field(
        False,
        description="Sequences of a micro-batch stand in one row without padding. It needs kernels for variable lengths "
        "(`flash_attention_2`); with `sdpa` the mask of a row is quadratic in its tokens: slow on long rows, for tests.",
    )
    context_gradient: bool = Field(
        True,
        description="Whether the policy's gradient goes through the states of prompt and earlier windows; without, their keys "
        "and values are computed once per update, forward alone, for all passes, and the gradient is biased.",
    )
    context_cache_tokens: int = Field(
        0,
        ge=0,
        description="Tokens of open episodes, per learner, whose keys and values are kept from update to update, for policy "
        "and critic: a context is computed once, and is as old as the window it was. 0 keeps none. "
        "`context_gradient` must be false.",
    )
    policy_token_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of a batch's tokens that the policy trains: fragments are drawn by a bound on their gradient (their "
        "advantages, and how uncertain their tokens were) and weighted with one over their chance, so that the expected "
        "gradient is the same (arXiv 1803.00942); 1 trains all.",
    )
    num_epochs: PositiveInt = Field(1, description="Passes of the policy over a batch.")
    critic_num_epochs: PositiveInt = Field(1, description="Passes of the critic over the finished episodes of a batch.")
    critic_minibatch_size: PositiveInt | None = Field(
        None, description="Response tokens of a critic step, per learner; None: all of a batch's."
    )
    critic_warmup_updates: int = Field(0, ge=0, description="First updates, in which the policy is frozen (VC-PPO).")
    grad_clip: float | None = Field(1.0, gt=0, description="Largest global gradient norm of the policy.")
    critic_grad_clip: float | None = Field(1.0, gt=0, description="Largest global gradient norm of the critic.")
    parallel_critic: bool = Field(
        False,
        description="Train the critic in a thread of its own while the policy trains: for one learner on a CPU, beside a core "
        "that is not always busy. The result is the same.",
    )

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
    evaluation_interval: PositiveInt | None = Field(
        None, description="Iterations, or sampled tokens, between evaluations; None: never."
    )
    evaluation_interval_unit: Literal["iterations", "tokens"] = Field(
        "iterations", description="What `evaluation_interval` counts; tokens make runs with unequal updates comparable."
    )
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
