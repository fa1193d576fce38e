from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from typing import Any

import pytest
from host_config import LearnerConfig
from tppo_rl.learner.settings import UpdateSettings

from tppo_rl.learner import settings

KEYS = {
    "gamma",
    "lambda_",
    "boundary_value",
    "clip_low",
    "clip_high",
    "temperature",
    "off_policy_correction",
    "policy_token_fraction",
    "unfinished_advantage_scale",
    "num_epochs",
    "minibatch_size",
    "critic_num_epochs",
    "critic_minibatch_size",
    "micro_batch_tokens",
    "lr",
    "critic_lr",
    "lr_warmup_updates",
    "critic_warmup_updates",
    "adam_betas",
    "weight_decay",
    "grad_clip",
    "critic_grad_clip",
    "parallel_critic",
    "seed",
    "advantage_estimator",
    "lambda_alpha",
    "advantage_normalization",
    "advantage_normalization_scope",
    "group_scale",
    "critic_targets",
    "critic_lambda",
    "value_batch_tokens",
    "dual_clip",
    "loss_aggregation",
    "value_clip",
    "entropy_coef",
    "kl_coef",
    "kl_estimator",
    "kl_in",
    "positive_lm_coef",
    "importance_cap",
    "sequence_mask",
    "packing",
    "context_gradient",
    "context_cache_tokens",
    "distributed",
}


def test_keys_and_their_documentation() -> None:
    assert {field.name for field in fields(UpdateSettings)} == KEYS
    (body,) = (node.body for node in ast.parse(inspect.getsource(settings)).body if isinstance(node, ast.ClassDef))
    documented = {
        field.target.id
        for field, text in pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
    }
    assert documented == KEYS


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("gamma", 0.0),
        ("gamma", 1.1),
        ("lambda_", -0.1),
        ("boundary_value", "last"),
        ("clip_low", 1.5),
        ("clip_high", -0.1),
        ("temperature", 0.0),
        ("off_policy_correction", "tis"),
        ("unfinished_advantage_scale", -0.1),
        ("unfinished_advantage_scale", 1.1),
        ("policy_token_fraction", 0.0),
        ("policy_token_fraction", 1.5),
        ("num_epochs", 0),
        ("critic_num_epochs", 0),
        ("micro_batch_tokens", 0),
        ("minibatch_size", 0),
        ("critic_minibatch_size", -1),
        ("lr", -1.0),
        ("lr", [[10, 1e-3], [20, 1e-4]]),
        ("critic_lr", [[0, 1e-3]]),
        ("critic_lr", -1.0),
        ("weight_decay", -1.0),
        ("lr_warmup_updates", -1),
        ("critic_warmup_updates", -1),
        ("grad_clip", 0.0),
        ("critic_grad_clip", -1.0),
        ("adam_betas", (0.9, 1.0)),
        ("adam_betas", (0.9,)),
        ("advantage_estimator", "vtrace"),
        ("lambda_", "adaptive"),
        ("lambda_alpha", 0.0),
        ("advantage_normalization", "mean"),
        ("advantage_normalization_scope", "episode"),
        ("critic_targets", "td"),
        ("critic_lambda", 1.5),
        ("value_batch_tokens", 0),
        ("dual_clip", 1.0),
        ("loss_aggregation", "sequence"),
        ("value_clip", 0.0),
        ("entropy_coef", -0.1),
        ("kl_coef", -0.1),
        ("kl_estimator", "k4"),
        ("kl_in", "advantage"),
        ("positive_lm_coef", -0.1),
        ("importance_cap", 0.0),
        ("sequence_mask", (2.0, 0.5)),
        ("distributed", "zero"),
    ],
)
def test_bad_values_are_refused_by_name(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{key}="):
        UpdateSettings(**{key: value})


def test_from_config() -> None:
    config = LearnerConfig()
    config.sampling = {"temperature": 0.6}
    config.clip_high = 0.5
    config.adam_betas = [0.8, 0.9]
    read = UpdateSettings.from_config(config)
    assert (read.temperature, read.clip_high, read.adam_betas) == (0.6, 0.5, (0.8, 0.9))
    del config.critic_lr
    with pytest.raises(ValueError, match="critic_lr"):
        UpdateSettings.from_config(config)
