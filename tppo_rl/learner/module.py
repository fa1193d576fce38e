"""The RLModule that RLlib keeps, checkpoints and sends to env-runners: a policy and, unless it has none, its critic."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from tppo_rl.config.sections.models import SEPARATE, SHARED
from tppo_rl.core.value_head_file import VALUE_HEAD_FILE
from tppo_rl.kernels.onednn_linear import use_fastest_linear
from tppo_rl.learner.context_cache import ContextCache
from tppo_rl.learner.empty_models import is_empty, weights_are_left_out
from tppo_rl.learner.hub_weights import HubLayout
from tppo_rl.learner.lora import add_adapters, check_trained, has_adapters, merged_weights, trained_weights
from tppo_rl.learner.models import (
    Critic,
    Policy,
    compute_logits_in_float32,
    load_causal_lm,
    parse_dtype,
    recompute_activations,
)
from tppo_rl.learner.sharded_build import files_in_parts, place
from tppo_rl.learner.sharding import WeightViews, gather_weights, is_sharded, load_weights
from tppo_rl.learner.shared_weights import once_each, share_weights
from tppo_rl.learner.transformers_internals import kept_in_float32
from tppo_rl.learner.values import CriticValues, critic_values
from tppo_rl.maths.value_forms import value_form

_logger = logging.getLogger(__name__)

TRAIN_BATCH = "train_batch"
"""Key of the `TrainBatch` in a module's batch."""

_MODEL_CONFIG_KEYS = {
    "policy_model",
    "critic",
    "critic_layers",
    "critic_lora",
    "on_policy_weights",
    "value_form",
    "reference_model",
    "dtype",
    "head_dtype",
    "weights_dtype",
    "gradient_checkpointing",
    "lora",
    "attention",
}


class LanguageModelModule(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """Policy and critic around transformers language models.

    `model_config`:
        policy_model: Local folder or hub id of a causal language model.
        critic: Folder or hub id that the critic's backbone starts from and, where there is one, its value head; "separate" and
            "shared", the options' words, stand for `policy_model`; None: no critic (group-relative algorithms).
        critic_layers: Number of its backbone's first layers that the critic keeps; None, the default: all.
        critic_lora: Adapters of the critic, as `lora`; None, the default: those of `lora`.
        on_policy_weights: Which of "critic" and "reference" have the policy's weights, in the same memory; none by default.
        value_form: Form of the critic's value head (see `value_forms.value_form`); None, the default: squared error.
        reference_model: Folder or hub id of the model that the policy is kept close to; None, the default, loads none.
        dtype: Compute dtype of the training, "float32" by default.
        head_dtype: "float32" for logits in single precision, None (the default) for those of `dtype`.
        weights_dtype: Dtype of weights, gradients and moments, "float32" by default (see `models`).
        gradient_checkpointing: Whether activations are computed again in the backward pass, False by default.
        attention: Attention kernels of all models: "sdpa", the default, "flash_attention_2" or "flex_attention".
        lora: `rank`, `alpha` and `target_modules` of the policy's adapters (see `lora`); None, the default, trains all weights.

    Where weights are left out (`empty_models.without_weights`), `place` has to be called before anything else.

    With `inference_only` there is neither critic nor reference. The reference is never trained, and no checkpoint holds it.
    Observation and action spaces are not read; they may be Text spaces.
    """

    policy: Policy
    critic: Critic | None
    reference: Policy | None

    def setup(self) -> None:
        """Loads the models.

        Raises:
            ValueError: an unknown key in `model_config`, no `policy_model`, or a model that cannot be loaded.
        """
        config = dict(self.model_config or {})
        self._sources: dict[str, str] = {}
        unknown = sorted(config.keys() - _MODEL_CONFIG_KEYS)
        if unknown:
            raise ValueError(f"model_config has unknown keys {unknown}: it takes {sorted(_MODEL_CONFIG_KEYS)}")
        if not config.get("policy_model"):
            raise ValueError("model_config['policy_model'] is missing: give a folder or hub id of a language model")
        dtype = parse_dtype(config.get("dtype", "float32"))
        source = config["policy_model"]
        critic_source = config.get("critic", SEPARATE)
        self.policy = _load_policy(source, dtype, config)
        self._sources["policy"] = source
        owners = dict.fromkeys(config.get("on_policy_weights", ()), self.policy.model)
        self.critic = None
        if critic_source is not None and not self.inference_only:
            own_critic = critic_source not in (SEPARATE, SHARED)
            backbone = critic_source if own_critic else source
            lora_key = "lora" if config.get("critic_lora") is None else "critic_lora"
            model = _load(backbone, dtype, config, config.get("critic_layers"), owners.get("critic"), lora_key=lora_key)
            self.critic = Critic(model, dtype, value_form(config.get("value_form")))
            self._sources["critic"] = backbone
            if own_critic:
                load_value_head(self.critic, Path(backbone))
        self.reference = None
        if config.get("reference_model") is not None and not self.inference_only:
            reference = config["reference_model"]
            self.reference = _load_policy(reference, dtype, config | {"lora": None}, owners.get("reference"))
            self.reference.requires_grad_(False)
            self._sources["reference"] = reference
        self._gathered: dict[str, dict[str, np.ndarray] | None] = {}
        self._policy_views = WeightViews(self.policy.model)
        self._hub_layout = HubLayout(self.policy.model)

    def place(self, device: torch.device) -> None:
        """Shards models that were left without weights, and reads this learner's slices of them; all learners must call it.

        Args:
            device: Of the learner; models with weights are moved there.

        Raises:
            ValueError: a model's files lack some of its weights.
        """
        for name, source in self._sources.items():
            model = getattr(self, name)
            if is_empty(model):
                place(model, source, device)
                use_fastest_linear(model)
        self.to(device)

    def _apply(self, fn: Any, recurse: bool = True) -> LanguageModelModule:
        """Moves the module; what its models have in common is moved once."""
        shares = bool((self.model_config or {}).get("on_policy_weights"))
        super()._apply(once_each(fn) if shares else fn, recurse)
        return self

    def compute_values(
        self,
        batch: dict[str, Any],
        embeddings: Any = None,
        *,
        micro_batch_tokens: int = 2048,
        packing: bool = False,
        cache: ContextCache | None = None,
    ) -> CriticValues:
        """Returns the critic's values of `batch[TRAIN_BATCH]`.

        Args:
            batch: Holds a `TrainBatch` under `TRAIN_BATCH`.
            embeddings: Not used: the critic runs its backbone itself.
            micro_batch_tokens: Most tokens in one forward pass, padding included.
            packing: Whether the sequences of a forward pass stand in one row without padding.
            cache: Cache of the critic; contexts that it holds are not computed again.

        Raises:
            ValueError: the module has no critic.
        """
        if self.critic is None:
            raise ValueError("this module has no critic: set critic='separate', or use advantages that need none")
        return critic_values(self.critic, batch[TRAIN_BATCH], micro_batch_tokens, packing=packing, cache=cache)

    def source(self, name: str) -> str:
        """Returns the folder or hub id that a model was loaded from: "policy", "critic" or "reference"."""
        return self._sources[name]

    @property
    def kept_in_float32(self) -> list[str]:
        """Parts of names of the policy's weights that stay in single precision in engines of half precision too."""
        return kept_in_float32(self.policy.model)

    def get_non_inference_attributes(self) -> list[str]:
        """Returns the parts that sampling does not need."""
        return ["critic", "reference"]

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        inference_only: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the weights as numpy arrays.

        With `inference_only` these are the policy's weights as its files on a hub have them (see `hub_weights`), for an
        engine. They may change with the next update. Adapters are merged into them.

        Otherwise these are copies, {"policy": {...}, "critic": {...}}, the second only with a critic. Models with adapters
        give the adapters and the value head alone. Weights of sharded models are those that the last `gather` has kept.

        Raises:
            RuntimeError: the models are sharded, and their weights were not gathered since they changed, or not here.
        """
        if inference_only and not is_sharded(self.policy) and not has_adapters(self.policy.model):
            return self._hub_layout.of(self._policy_views.of_now())
        if inference_only:
            return self._hub_layout.of(merged_weights(self.policy.model, self._weights("policy", self.policy.model)))
        models = {"policy": self.policy.model, "critic": self.critic}
        return {name: self._trained_copies(name, model) for name, model in models.items() if model is not None}

    def trained_tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Returns the weights that `get_state` gives copies of, themselves: those of sharded models are DTensors."""
        models = {"policy": self.policy.model, "critic": self.critic}
        return {
            name: trained_weights(model, model.state_dict(keep_vars=True))
            for name, model in models.items()
            if model is not None
        }

    def gather(self, *, inference_only: bool, keep: bool) -> None:
        """Gathers the whole weights of sharded models for `get_state`; with `inference_only` those of the policy alone.

        All learners must call it; the result stays on those with `keep`.
        """
        parts = (
            {"policy": self.policy.model} if inference_only else {"policy": self.policy.model, "critic": self.critic}
        )
        for name, model in parts.items():
            if model is not None and name not in self._gathered:
                weights = gather_weights(model, keep=keep)
                self._gathered[name] = weights if keep else None

    def forget_gathered(self) -> None:
        """Drops the weights that `gather` has kept; all learners must call it when their weights change."""
        self._gathered.clear()

    def set_state(self, state: dict[str, Any]) -> None:
        """Loads weights in either form of `get_state`, also out of files (`StoredArray`); a part that is not in `state` is left alone.

        Raises:
            RuntimeError: names or shapes of the weights are not those of the models. Models with adapters refuse merged
                weights, which cannot be taken apart again. So do models whose files have another layout.
        """
        whole = "policy" in state
        self.forget_gathered()
        _load_trained(self.policy.model, state["policy"] if whole else state)
        if whole and self.critic is not None and "critic" in state:
            _load_trained(self.critic, state["critic"])

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the logits, [b, n, V], of int64 token ids [b, n] under `Columns.OBS`; sampling is the engine's."""
        return {Columns.ACTION_DIST_INPUTS: self.policy.logits(batch[Columns.OBS])}

    def _trained_copies(self, name: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
        if is_sharded(self.policy):
            return trained_weights(model, self._weights(name, model))
        return gather_weights(model, only=trained_weights(model, model.state_dict(keep_vars=True)))

    def _weights(self, name: str, model: torch.nn.Module) -> dict[str, np.ndarray]:
        if not is_sharded(self.policy):
            return gather_weights(model)
        weights = self._gathered.get(name)
        if weights is None:
            raise RuntimeError(
                f"the sharded weights of the {name} are not gathered here: ask TPPOLearnerGroup.get_state"
            )
        return weights


def load_value_head(critic: Critic, folder: Path) -> None:
    """Loads the value head that stands beside a critic's backbone, if there is one."""
    from safetensors.torch import load_file

    file = folder / VALUE_HEAD_FILE
    if file.is_file():
        head = {name: tensor.to(critic.value_head.weight.dtype) for name, tensor in load_file(file).items()}
        critic.value_head.load_state_dict(head)


def _load_policy(source: str, dtype: torch.dtype, config: dict[str, Any], owner: Any = None) -> Policy:
    model = _load(source, dtype, config, owner=owner)
    if config.get("head_dtype") is not None:
        compute_logits_in_float32(model, dtype)
    return Policy(model, dtype)


def _load(
    source: str,
    dtype: torch.dtype,
    config: dict[str, Any],
    num_layers: int | None = None,
    owner: Any = None,
    *,
    lora_key: str = "lora",
) -> Any:
    """Loads a model, or builds it around the weights of its `owner`."""
    weights_dtype, attention = parse_dtype(config.get("weights_dtype", "float32")), config.get("attention", "sdpa")
    empty = weights_are_left_out() and files_in_parts(source) is not None
    if weights_are_left_out() and not empty:
        _logger.warning("%s has no safetensors files: every learner loads the whole model before it is sharded", source)
    model = load_causal_lm(
        source,
        dtype,
        weights_dtype=weights_dtype,
        attention=attention,
        num_layers=num_layers,
        empty=empty or owner is not None,
    )
    if owner is not None:
        share_weights(model, owner)
    if config.get(lora_key) is not None:
        add_adapters(model, config[lora_key], lora_key)
    use_fastest_linear(model)
    if config.get("gradient_checkpointing", False):
        recompute_activations(model)
    return model


def _load_trained(model: torch.nn.Module, weights: dict[str, Any]) -> None:
    if has_adapters(model):
        check_trained(model, weights)
    else:
        tied = getattr(model, "all_tied_weights_keys", {})
        weights = weights | {name: weights[own] for name, own in tied.items() if own in weights}
    load_weights(model, weights, strict=not has_adapters(model))
