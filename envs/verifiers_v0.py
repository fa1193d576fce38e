"""The first form of verifiers packages: `load_environment(**arguments)` with a data set and a rubric.

The rubric's own `score_rollout` turns exceptions into 0. Its functions are called here instead, so that a failure stays one.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

import numpy as np

from tppo_rl.envs.tool_calls import finished
from tppo_rl.envs.verifiers_tasks import Message, Task, UnfitTask, messages_of

_OF_GROUPS = frozenset({"prompts", "completions", "answers", "states", "tasks", "infos"})

Part = tuple[Callable[..., Any], float, Mapping[str, Any]]
"""A reward function, its weight, and the rubric's objects that it may ask for."""


def tasks_of(module: ModuleType, arguments: Mapping[str, Any], limit: int | None) -> list[Task]:
    """The rows of the environment's data set.

    Raises:
        UnfitTask: The environment takes more than one turn, or rewards groups.
        ValueError: It refuses the arguments.
    """
    try:
        env = module.load_environment(**arguments)
    except Exception as error:
        raise UnfitTask(f"load_environment({_words(arguments)}) raises {type(error).__name__}: {error}") from error
    classes = [kind.__name__ for kind in type(env).__mro__]
    if "SingleTurnEnv" not in classes and getattr(env, "max_turns", None) != 1:
        raise UnfitTask(f"{classes[0]} takes several turns; only single-turn environments of verifiers can be used")
    parts = list(_parts(env.rubric))
    if not parts:
        raise UnfitTask("its rubric has no function with a weight, so nothing is rewarded")
    for function, _, _ in parts:
        if _OF_GROUPS & inspect.signature(function).parameters.keys():
            raise UnfitTask(f"its reward {_name(function)} compares the responses of a group; take another rubric")
    as_messages = getattr(env, "message_type", "chat") == "chat"
    rows = islice(env.get_dataset(), limit)
    return [_task(number, row, env, parts, as_messages) for number, row in enumerate(rows)]


def _parts(rubric: Any) -> Iterator[Part]:
    for inner in getattr(rubric, "rubrics", ()):
        yield from _parts(inner)
    functions = getattr(rubric, "funcs", None) or getattr(rubric, "reward_funcs", None) or ()
    weights = getattr(rubric, "weights", None) or getattr(rubric, "reward_weights", None) or [1.0] * len(functions)
    objects = {"parser": getattr(rubric, "parser", None), **getattr(rubric, "class_objects", {})}
    # Without a weight it is a metric.
    yield from ((one, weight, objects) for one, weight in zip(functions, weights, strict=True) if weight)


def _task(number: int, row: Mapping[str, Any], env: Any, parts: Sequence[Part], as_messages: bool) -> Task:
    prompt = row.get("prompt")
    if prompt is None:
        prompt = row.get("question")
    before, text = messages_of(prompt)
    system = getattr(env, "system_prompt", None)
    if system and all(one["role"] != "system" for one in before):
        before = ({"role": "system", "content": system}, *before)
    columns = {**row, "answer": row.get("answer", ""), "info": _info(number, row.get("info") or {})}
    messages: Any = [*before, {"role": "user", "content": text}] if as_messages else text
    shown = {name: columns[name] for name in ("answer", "info", "task") if columns.get(name) not in (None, "", {})}
    return Task(text, before, shown, partial(_reward, parts, messages, columns, as_messages))


def _info(number: int, info: Any) -> Any:
    if not isinstance(info, str):
        return info
    try:
        return json.loads(info)
    except ValueError as error:
        raise ValueError(f"row {number}: info={info!r:.80} must be a mapping, or one as JSON ({error})") from None


def _reward(parts: Sequence[Part], prompt: Any, columns: Mapping[str, Any], as_messages: bool, response: str) -> float:
    completion: list[Message] | str = [{"role": "assistant", "content": response}] if as_messages else response
    state = {**columns, "prompt": prompt, "completion": completion, "input": dict(columns), "trajectory": [], "turn": 1}
    there = {**columns, "prompt": prompt, "completion": completion, "state": state, "task": columns.get("task")}
    total = 0.0
    for function, weight, objects in parts:
        parameters = inspect.signature(function).parameters
        takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        given = {name: value for name, value in {**there, **objects}.items() if takes_all or name in parameters}
        value = finished(function(**given))
        if not isinstance(value, int | float | np.number):
            raise TypeError(f"the reward {_name(function)} must return a number, not {value!r}"[:200])
        total += weight * float(value)
    return total


def _name(function: Any) -> str:
    return getattr(function, "__name__", type(function).__name__)


def _words(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())
