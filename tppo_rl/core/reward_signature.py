"""What a reward function asks for, read off its parameters.

    f(prompts=, completions=, completion_ids=, **columns)                             TRL: a batch of responses, by columns
    f(data_source, solution_str, ground_truth, extra_info=None, **reward_kwargs)      verl: one response

A function of verl is known by its parameters `solution_str` and `ground_truth`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from tppo_rl.core.errors import OptionError

RESPONSE_ARGUMENTS = frozenset(
    {"prompts", "completions", "completion_ids", "environment_reward", "correct", "truncated"}
)
"""Arguments that every response has."""
RUN_ARGUMENTS = frozenset({"trainer_state", "log_extra", "log_metric"})
"""Arguments that are given where the function names them."""
COMPUTE_SCORE_ARGUMENTS = frozenset({"data_source", "solution_str", "ground_truth", "extra_info"})
"""Arguments of verl's `compute_score`."""


@dataclass(frozen=True)
class RewardSignature:
    """Parameters of a reward function that are not bound yet."""

    named: frozenset[str]
    required: frozenset[str]
    takes_all: bool
    """Whether it takes columns of any name."""
    bound: frozenset[str]
    """Names that the user gave a value."""
    is_compute_score: bool

    @classmethod
    def of(cls, function: Callable[..., Any]) -> RewardSignature:
        """Reads the parameters of a function, of a callable object, or of one with bound arguments."""
        try:
            parameters = inspect.signature(function).parameters
        except ValueError:
            raise OptionError(
                f"rewards={function!r}: its parameters cannot be read; write a function of your own that calls it"
            ) from None
        bound = frozenset(function.keywords) if isinstance(function, partial) else frozenset()
        kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = frozenset(name for name, parameter in parameters.items() if parameter.kind in kinds) - bound
        needed = () if inspect.isclass(function) else getattr(function, "needs", ())
        return cls(
            named,
            frozenset(name for name in named if parameters[name].default is inspect.Parameter.empty)
            | frozenset(needed),
            has_open_keywords(parameters),
            bound,
            is_compute_score(parameters),
        )

    def missing(self, info: Mapping[str, Any]) -> list[str]:
        """Returns what the function needs and an environment whose `reset` gives this info does not have."""
        if self.is_compute_score:
            lacking = sorted(self.required - COMPUTE_SCORE_ARGUMENTS - info.keys())
            return lacking if any(has_column(info, name) for name in _GROUND_TRUTHS) else ["answer", *lacking]
        return sorted(name for name in self.required - RESPONSE_ARGUMENTS - RUN_ARGUMENTS if not has_column(info, name))


def is_compute_score(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether these are the parameters of a `compute_score` of verl."""
    return {"solution_str", "ground_truth"} <= parameters.keys()


def has_open_keywords(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether the parameters end in `**anything`."""
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())


def column(info: Mapping[str, Any], name: str) -> Any:
    """Returns a column of a row; `a.b` is key `b` of the mapping in column `a`; None where it has none."""
    return _lookup(info, name, None)


def has_column(info: Mapping[str, Any], name: str) -> bool:
    """Whether a row has a column, be its value None."""
    return _lookup(info, name, _NOTHING) is not _NOTHING


def ground_truth(info: Mapping[str, Any]) -> Any:
    """The known answer of a row of verl's: `reward_model.ground_truth`, `ground_truth`, `gold_answer` or `answer`; None without any."""
    found = (column(info, name) for name in _GROUND_TRUTHS)
    return next((value for value in found if value is not None), None)


_GROUND_TRUTHS = ("reward_model.ground_truth", "ground_truth", "gold_answer", "answer")
_NOTHING = object()


def _lookup(info: Mapping[str, Any], name: str, otherwise: Any) -> Any:
    if name in info:
        return info[name]
    value: Any = info
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return otherwise
        value = value[key]
    return value
