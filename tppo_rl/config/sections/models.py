"""Options of the models: policy, critic and reference, their adapters and number formats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, PositiveFloat, PositiveInt

from tppo_rl.config.section import Condition, Section, option, refuse

if TYPE_CHECKING:
    from tppo_rl.config.options import Options

SEPARATE, SHARED = "separate", "shared"
"""Values of `critic` that are no model: a backbone that starts as the policy's, and one that is the policy's."""
HAS_CRITIC = Condition("a critic", lambda options: options.models.critic is not None)
_SHARES = Condition(f"critic='{SHARED}'", lambda options: options.models.critic == SHARED)
HAS_REFERENCE = Condition("kl_coef above 0", lambda options: options.policy_loss.kl_coef > 0)
ALL_LINEAR = "all-linear"
_SHARED_RANK = 16


def _targets(value: Any) -> Any:
    names = isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value)
    if not names and value != ALL_LINEAR:
        raise ValueError(
            "must be a list of names of linear layers, such as ['q_proj', 'v_proj'], or 'all-linear'; leave it out for the "
            "latter"
        )
    return tuple(value) if names else value


class LoraOptions(Section):
    """Adapters that are trained instead of all weights (arXiv 2106.09685)."""

    rank: PositiveInt = option(..., "Rank of the adapters, for example 16.")
    alpha: PositiveFloat | None = option(None, "Scale of the adapters; None: 2 * rank.")
    target_modules: Annotated[str | tuple[str, ...], BeforeValidator(_targets)] = option(
        ALL_LINEAR, "Names of linear layers, or `all-linear`."
    )


class ModelOptions(Section):
    """Models and their number formats."""

    policy_model: str | None = option(
        None, "Folder or hub id of the policy: any transformers causal language model with a chat template."
    )
    critic: str | None = option(
        SEPARATE,
        "`separate`: a backbone of its own that starts from `policy_model`; `shared`: the policy's backbone as it is at the moment, with "
        "the critic's own adapters (`critic_lora`) and value head, for a hundredth of its memory; a folder or hub id: that model's backbone, "
        "with the value head that `tppo-rl export --critic` has written beside it; None: no critic (group-relative advantages).",
    )
    critic_lora: LoraOptions | None = option(
        None,
        "Adapters of a critic on the policy's backbone, as in `lora`; None: of rank 16 on all linear layers.",
        read_with=_SHARES,
    )
    critic_layers: PositiveInt | None = option(
        None,
        "Number of its backbone's first layers that the critic keeps; fewer make it cheaper; None: all.",
        read_with=HAS_CRITIC,
    )
    reference_model: str = option(
        "initial",
        "Model that `kl_coef` keeps the policy close to: `initial` is `policy_model`; else a folder or hub id.",
        read_with=HAS_REFERENCE,
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "float32",
        "Number format in which policy, critic and engine compute. `float16` is eight times as fine as `bfloat16`, so that engine "
        "and trainer agree better, and has its loss scaled against underflow.",
    )
    head_dtype: Literal["float32"] | None = option(
        None,
        "Number format in which the output layer computes logits, in trainer and engine; None: `dtype`. `float32` costs a product "
        "in single precision for every sampled token, and removes the rounding of logits.",
    )
    weights_dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Number format of the trainer's weights, gradients and moments: `float32` master weights, or `bfloat16`, which halves "
        "their memory and rounds small steps away.",
    )
    lora: LoraOptions | None = option(
        None,
        "Adapters of policy and critic that are trained instead of their weights: `rank`, `alpha` (default 2 * rank) and "
        "`target_modules` (names of linear layers, or `all-linear`, the default); None: all weights are trained.",
    )
    attention: Literal["auto", "sdpa", "flash_attention_2", "flex_attention"] = option(
        "auto",
        "Attention kernels of the learners. `auto`: for packed rows on GPUs `flash_attention_2` where the package flash-attn is installed "
        "and `dtype` is half precision, else `flex_attention`; `sdpa` for padded rows and on CPUs, where the others have no backward pass.",
    )

    @property
    def critic_model(self) -> str | None:
        """Folder or hub id that the critic's backbone starts from; None: no critic."""
        return self.policy_model if self.critic in (SEPARATE, SHARED) else self.critic

    @property
    def sources(self) -> dict[str, str]:
        """Folders or hub ids of all models that are loaded, by the option that names them."""
        named = {"policy_model": self.policy_model, "critic": self.critic_model, "reference_model": self.reference}
        return {key: name for key, name in named.items() if name is not None}

    @property
    def critic_adapters(self) -> LoraOptions | None:
        """Adapters of the critic; None: all its weights are trained."""
        if self.critic != SHARED:
            return self.lora
        return self.critic_lora or LoraOptions(rank=_SHARED_RANK)

    @property
    def adapters(self) -> dict[str, dict[str, Any] | None]:
        """What `lora` and `critic_lora` come to, as the learners' models take them; None: no such adapters."""
        own = {"lora": self.lora, "critic_lora": self.critic_adapters if self.critic == SHARED else None}
        return {key: None if lora is None else lora.model_dump(exclude_none=True) for key, lora in own.items()}

    @property
    def reference(self) -> str | None:
        """Folder or hub id of the model that the policy is kept close to."""
        return self.policy_model if self.reference_model == "initial" else self.reference_model

    def on_policy_weights(self, options: Options) -> tuple[str, ...]:
        """Returns which of "critic" and "reference" have the policy's weights, in the same memory, beside adapters of their own."""
        if options.learners.distributed == "fsdp":
            return ()
        is_frozen = self.lora is not None
        found = []
        if self.critic == SHARED or (is_frozen and self.critic_model == self.policy_model):
            found.append("critic")
        if is_frozen and options.policy_loss.kl_coef > 0 and self.reference == self.policy_model:
            found.append("reference")
        return tuple(found)

    def check(self, options: Options) -> None:
        """Checks number formats, and what a critic on the policy's backbone goes with."""
        self._check_shared(options)
        if self.weights_dtype == "bfloat16" and self.dtype == "float16":
            refuse(
                "weights_dtype",
                self.weights_dtype,
                "with dtype='float16' gradients are scaled, and the weights that they train must be float32; set weights_dtype to "
                "'float32', or dtype to 'bfloat16'",
            )
        if self.weights_dtype == "bfloat16" and self.dtype == "float32":
            refuse(
                "weights_dtype",
                self.weights_dtype,
                "with dtype='float32' the computation would be finer than the weights that it trains; set dtype to "
                "'bfloat16', or weights_dtype to 'float32'",
            )

    def _check_shared(self, options: Options) -> None:
        if self.critic != SHARED:
            return
        if self.lora is not None:
            refuse(
                "critic",
                SHARED,
                "with lora policy and critic have their frozen weights in common already; set critic to 'separate'",
            )
        if options.learners.distributed == "fsdp":
            refuse(
                "critic",
                SHARED,
                "distributed='fsdp' shards the weights of each model by itself; set critic to 'separate', or distributed to 'ddp'",
            )
        if options.critic.parallel_critic:
            refuse(
                "parallel_critic",
                True,
                f"with critic='{SHARED}' the policy's steps change the weights that the critic computes with; set it to false",
            )
