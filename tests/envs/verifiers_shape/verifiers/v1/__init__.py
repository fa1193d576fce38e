"""Tasks, tasksets, traces."""

import copy
import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict

from verifiers.v1.configs.taskset import TaskConfig, TasksetConfig
from verifiers.v1.trace import Reward, Trace, TraceTask

__all__ = ["Task", "TaskData", "Taskset", "TasksetConfig", "Trace", "TraceTask", "reward"]

DataT = TypeVar("DataT")
TaskT = TypeVar("TaskT")
ConfigT = TypeVar("ConfigT")


def reward(function: Any = None, *, weight: float = 1.0) -> Any:
    def mark(one: Any) -> Any:
        one.reward, one._vf_weight = True, weight
        return one

    return mark if function is None else mark(function)


class TaskData(BaseModel):
    model_config = ConfigDict(frozen=True)

    idx: int | None = None
    name: str | None = None
    prompt: Any = None
    system_prompt: str | None = None


class Task(Generic[DataT]):
    NEEDS_CONTAINER = False

    def __init__(self, data: Any, config: Any = None) -> None:
        self.data, self.config = data, config or TaskConfig()

    @property
    def hash(self) -> str:
        return hashlib.sha256(self.data.model_dump_json().encode()).hexdigest()

    key = hash

    async def setup(self, trace: Any, runtime: Any) -> None: ...

    async def finalize(self, trace: Any, runtime: Any) -> None: ...

    def hooks(self, attr: str) -> list[Any]:
        names = [name for name, one in inspect.getmembers(type(self), inspect.isfunction) if hasattr(one, attr)]
        return [getattr(self, name) for name in sorted(names)]

    async def score(self, trace: Trace, runtime: Any = None) -> None:
        available = {"task": self.data, "trace": trace}
        for one in self.hooks("reward"):
            trace.rewards[one.__name__] = None
            value = await one(**{name: available[name] for name in inspect.signature(one).parameters})
            trace.rewards[one.__name__] = Reward(score=value, weight=one._vf_weight)

    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return []


class Taskset(ABC, Generic[TaskT, ConfigT]):
    INFINITE = False

    def __init__(self, config: Any) -> None:
        self.config = config

    @abstractmethod
    def load(self) -> Iterable[Any]: ...

    @property
    def bounded(self) -> bool:
        return not self.INFINITE

    def __iter__(self) -> Iterator[Any]:
        for idx, task in enumerate(self.load()):
            clone = copy.copy(task)
            clone.data = task.data.model_copy(update={"idx": idx})
            yield clone

    @classmethod
    def toolsets(cls, config: Any) -> list[Any]:
        return []
