"""The builder's methods, made from the sections of the options: `config.training(lr=1e-4, lambda_=0.95)`.

Keywords are the options of some sections and those of RLlib's method of the same name, to which its own go on. Signatures for
type checkers and editors stand in `builder.pyi`, which `docs/generate.py` writes.
"""

from __future__ import annotations

import inspect
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig

from tppo_rl.config.options import OPTIONS, SECTIONS, with_new_names
from tppo_rl.core.errors import OptionError, unknown_key

METHODS: dict[str, tuple[tuple[str, ...], str]] = {
    "language_model": (
        ("models", "chat"),
        "Sets the models, their number formats, where critic and reference come from, and the text around prompts.",
    ),
    "env_runners": (
        ("rollout", "groups", "rewards", "scoring"),
        "Sets windows, caps, sampling, groups, rewards, scoring workers and engine.",
    ),
    "learners": (("learners",), "Sets what learners hold, share and compute at a time."),
    "resources": (("placement",), "Sets where engines and learners stand on GPUs."),
    "training": (
        ("optimizer", "compute", "advantages", "policy_loss", "critic"),
        "Sets estimator, losses, optimizers and batch sizes.",
    ),
    "pipeline": (("pipeline",), "Sets how sampling and training are coupled."),
    "evaluation": (("evaluation",), "Sets held-out evaluations."),
    "reporting": (("run",), "Sets seed and what a run leaves behind."),
}
"""Sections of each method, and its meaning. `environment` and `debugging` are RLlib's own."""
FIRST = {"language_model": "policy_model"}
"""Options that may be given without their keyword."""


def option_keys(method: str) -> list[str]:
    """Options that are keywords of a builder method."""
    sections, _ = METHODS[method]
    return [key for section in sections for key in SECTIONS[section].model_fields]


class OptionBuilder(AlgorithmConfig):
    """RLlib's config with a builder method for every section of the options."""


def _method(name: str) -> Any:
    keys = option_keys(name)
    of_rllib = getattr(AlgorithmConfig, name, None)
    rllib_keys = set(inspect.signature(of_rllib).parameters) - {"self", "kwargs"} if of_rllib is not None else set()

    def method(self: OptionBuilder, *first: Any, **given: Any) -> OptionBuilder:
        if first:
            if len(first) > 1 or name not in FIRST:
                raise TypeError(f"{name}() takes its options by keyword, such as {name}({keys[0]}=...)")
            given = {FIRST[name]: first[0]} | given
        given = with_new_names(given)
        for key, value in given.items():
            if key not in keys and key not in rllib_keys:
                raise OptionError(unknown_key(key, value, {*keys, *rllib_keys}))
        shared = {key: value for key, value in given.items() if key in rllib_keys}
        if of_rllib is not None:
            of_rllib(self, **shared)
        for key, value in given.items():
            if key in OPTIONS:
                setattr(self, key, value)
        return self

    method.__name__ = name
    method.__qualname__ = f"{OptionBuilder.__name__}.{name}"
    options = "\n".join(f"    {key}: {OPTIONS[key].description} Default: {OPTIONS[key].default!r}." for key in keys)
    method.__doc__ = f"{METHODS[name][1]} RLlib's own options go on to RLlib.\n\nArgs:\n{options}\n"
    return method


for _name in METHODS:
    setattr(OptionBuilder, _name, _method(_name))
