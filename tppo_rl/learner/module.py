"""The RLModule that RLlib keeps, checkpoints and sends to env-runners: a policy and, where there is one, its critic."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.apis import InferenceOnlyAPI, ValueFunctionAPI
from ray.rllib.core.rl_module.torch import TorchRLModule

from tppo_rl.learner.lora import add_adapters, has_adapters, load_trained_state, merged_state, trained_state
from tppo_rl.learner.models import Critic, Policy, load_causal_lm, parse_dtype
from tppo_rl.learner.targets import CriticValues, critic_values

TRAIN_BATCH = "train_batch"
"""Key of the `TrainBatch` in a module's batch."""

_MODEL_CONFIG_KEYS = {"policy_model", "critic", "reference_model", "dtype", "lora", "attention"}


class LanguageModelModule(TorchRLModule, ValueFunctionAPI, InferenceOnlyAPI):
    """Policy and critic around transformers language models.

    `model_config`:
        policy_model: Local folder or hub id of a causal language model.
        critic: "separate" starts the critic's own backbone from `policy_model`; a folder or hub id starts it from
            there; None is without a critic (group-relative algorithms).
        reference_model: Folder or hub id of the model that the policy is kept close to; None, the default, loads none.
        dtype: Compute dtype of the training, "float32" by default. The weights are float32 (see `models`).
        attention: "sdpa", the default, "flash_attention_2" or "flex_attention", of all models.
        lora: `rank`, `alpha` and `target_modules` of adapters of policy and critic (see `lora`); None, the default,
            trains all weights.

    With `inference_only` there is neither critic nor reference. The reference is never trained and in no checkpoint. Observation and action spaces are not read; they may be Text spaces.
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
        unknown = sorted(config.keys() - _MODEL_CONFIG_KEYS)
        if unknown:
            raise ValueError(f"model_config has unknown keys {unknown}: it takes {sorted(_MODEL_CONFIG_KEYS)}")
        if not config.get("policy_model"):
            raise ValueError("model_config['policy_model'] is missing: give a folder or hub id of a language model")
        dtype = parse_dtype(config.get("dtype", "float32"))
        source = config["policy_model"]
        critic_source = config.get("critic", "separate")
        attention = config.get("attention", "sdpa")
        lora = config.get("lora")
        self.policy = Policy(_with_adapters(load_causal_lm(source, dtype, attention), lora), dtype)
        self.critic = None
        if critic_source is not None and not self.inference_only:
            backbone = load_causal_lm(source if critic_source == "separate" else critic_source, dtype, attention)
            self.critic = Critic(_with_adapters(backbone, lora), dtype)
        self.reference = None
        if config.get("reference_model") is not None and not self.inference_only:
            self.reference = Policy(load_causal_lm(config["reference_model"], dtype, attention), dtype)
            self.reference.requires_grad_(False)

    def compute_values(
        self, batch: dict[str, Any], embeddings: Any = None, *, micro_batch_tokens: int = 2048, packing: bool = False
    ) -> CriticValues:
        """Returns the critic's values of `batch[TRAIN_BATCH]`.

        Args:
            batch: Holds a `TrainBatch` under `TRAIN_BATCH`.
            embeddings: Not used: the critic has its own backbone.
            micro_batch_tokens: Most tokens in one forward pass, padding included.
            packing: Whether the sequences of a forward pass stand in one row without padding.

        Raises:
            ValueError: the module has no critic.
        """
        if self.critic is None:
            raise ValueError("this module has no critic: set critic='separate', or use advantages that need none")
        return critic_values(self.critic, batch[TRAIN_BATCH], micro_batch_tokens, packing=packing)

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
        """Returns copies of the weights as numpy arrays.

        With `inference_only` they are the policy's under their transformers names, which is what an engine loads;
        otherwise {"policy": {...}, "critic": {...}}, the latter where there is a critic. With adapters the former are
        merged into the weights, and the latter holds adapters and value head alone.
        """
        if inference_only:
            return _to_numpy(merged_state(self.policy.model))
        models = {"policy": self.policy.model} | ({} if self.critic is None else {"critic": self.critic})
        return {name: _to_numpy(_own_state(model)) for name, model in models.items()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Loads weights in either form of `get_state`; a part that is not in `state` is left alone.

        Raises:
            RuntimeError: names or shapes of the weights are not those of the models. With adapters that is so for the
                merged weights, which cannot be taken apart again.
        """
        whole = "policy" in state
        _load_own_state(self.policy.model, _to_torch(state["policy"] if whole else state))
        if whole and self.critic is not None and "critic" in state:
            _load_own_state(self.critic, _to_torch(state["critic"]))

    def _forward(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        """Returns the logits, [b, n, V], of int64 token ids [b, n] under `Columns.OBS`; sampling is the engine's."""
        return {Columns.ACTION_DIST_INPUTS: self.policy.model(input_ids=batch[Columns.OBS], use_cache=False).logits}


def _with_adapters(model: Any, lora: dict[str, Any] | None) -> Any:
    if lora is not None:
        add_adapters(model, lora)
    return model


def _own_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return trained_state(model) if has_adapters(model) else model.state_dict()


def _load_own_state(model: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    if has_adapters(model):
        load_trained_state(model, state)
    else:
        model.load_state_dict(state)


def _to_numpy(weights: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    # A view would change under the reader's hands with the next optimizer step.
    return {name: weight.detach().cpu().numpy().copy() for name, weight in weights.items()}


def _to_torch(weights: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.as_tensor(np.array(weight)) for name, weight in weights.items()}
