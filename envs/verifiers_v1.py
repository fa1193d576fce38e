"""The second form of verifiers packages: a `Taskset` that loads tasks, whose methods marked `@reward` read a trace.

The package's own trace is filled with the prompt and the response, and its own `Task.score` is called.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from functools import partial
from itertools import islice
from types import ModuleType
from typing import Any

from tppo_rl.envs.tool_calls import finished
from tppo_rl.envs.verifiers_tasks import Task, UnfitTask, messages_of


def tasks_of(module: ModuleType, arguments: Mapping[str, Any], limit: int | None) -> list[Task]:
    """The tasks of the module's taskset.

    Raises:
        UnfitTask: The module has no taskset, it refuses the arguments, or a task needs more than one text as its answer.
    """
    try:
        import verifiers.v1 as vf
        from verifiers.v1.configs.taskset import TasksetConfig
        from verifiers.v1.utils.generic import concrete_type
    except ImportError as error:
        raise UnfitTask(
            f"it has no load_environment, and verifiers with tasksets is not installed ({error}); install verifiers 0.4 or newer"
        ) from error
    names = getattr(module, "__all__", None) or vars(module)
    found = {id(one): one for one in (getattr(module, name, None) for name in names)}.values()
    kinds = [
        one for one in found if inspect.isclass(one) and issubclass(one, vf.Taskset) and not inspect.isabstract(one)
    ]
    if len(kinds) != 1:
        raise UnfitTask(f"it must export one taskset or a function load_environment, and has {len(kinds)} tasksets")
    kind: Any = kinds[0]
    config_kind: Any = concrete_type(kind, TasksetConfig, origin=vf.Taskset) or TasksetConfig
    try:
        taskset = kind(config_kind(**arguments))
    except Exception as error:
        raise UnfitTask(f"{config_kind.__name__} refuses arguments={dict(arguments)!r}: {error}") from error
    if not taskset.bounded and limit is None:
        raise UnfitTask(f"{kind.__name__} has no end; set limit to the number of tasks that are read")
    if kind.toolsets(taskset.config):
        raise UnfitTask(f"{kind.__name__} has tools; only tasksets that are answered with one text can be used")
    tasks = list(islice(taskset, limit))
    for kind_of_task in {type(one) for one in tasks}:
        _check(kind_of_task, next(one for one in tasks if type(one) is kind_of_task), vf)
    return [_task(one) for one in tasks]


def _check(kind: Any, task: Any, vf: Any) -> None:
    """Refuses what needs more than a text: containers, tools, steps before or after the response, a runtime for the reward."""

    def refuse(what: str) -> None:
        raise UnfitTask(f"{kind.__name__} {what}; only tasks that are answered with one text can be used")

    if kind.NEEDS_CONTAINER:
        refuse("needs a container")
    if kind.toolsets(task.config):
        refuse("has tools")
    for step in ("setup", "finalize"):
        if getattr(kind, step) is not getattr(vf.Task, step):
            refuse(f"has a method {step}")
    rewards = task.hooks("reward")
    for one in [*rewards, *task.hooks("metric")]:
        runtime = inspect.signature(one).parameters.get("runtime")
        if runtime is not None and runtime.default is runtime.empty:
            refuse(f"scores with a runtime ({one.__name__})")
    if not rewards and not task.config.judges:
        refuse("has no method marked @reward")


def _task(task: Any) -> Task:
    before, text = messages_of(task.data.prompt)
    if task.data.system_prompt is not None and all(one["role"] != "system" for one in before):
        before = ({"role": "system", "content": task.data.system_prompt}, *before)
    data = task.data.model_dump(mode="json", exclude_none=True)
    shown = {name: data[name] for name in ("answer", "info", "name", "id", "idx") if name in data}
    return Task(text, before, shown, partial(_reward, task, before, text))


def _reward(task: Any, before: tuple[Mapping[str, str], ...], prompt: str, response: str) -> float:
    import verifiers.v1 as vf
    from verifiers.v1.configs.agent import WireAgentConfig
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo
    from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

    kinds: dict[str, Any] = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    turns = [*before, {"role": "user", "content": prompt}]
    nodes = [
        MessageNode(parent=number - 1 if number else None, message=kinds[one["role"]](content=one["content"]))
        for number, one in enumerate(turns)
    ]
    # As a server with a parser for reasoning would split it.
    reasoning, closed, said = response.partition("</think>")
    own = {"reasoning_content": reasoning.removeprefix("<think>"), "content": said} if closed else {"content": response}
    nodes.append(MessageNode(parent=len(nodes) - 1, message=AssistantMessage(**own), sampled=True))
    recorded = vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash)
    trace = vf.Trace(task=recorded, agent=AgentInfo(config=WireAgentConfig()), nodes=nodes, is_completed=True, ok=True)
    finished(task.score(trace))
    left = [name for name, reward in trace.rewards.items() if reward is None]
    if left or not math.isfinite(trace.reward):
        raise ValueError(f"the task gave no finite reward ({', '.join(left) or trace.reward})")
    return float(trace.reward)
