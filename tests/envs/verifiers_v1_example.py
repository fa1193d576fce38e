"""A taskset of verifiers 0.4: double a number."""

from collections.abc import Iterator

import verifiers.v1 as vf
from verifiers.v1.configs.taskset import TasksetConfig

__all__ = ["Doubling"]


class Row(vf.TaskData):
    answer: str = ""


class Config(TasksetConfig):
    numbers: int = 100
    kind: str = "plain"


class Double(vf.Task[Row]):
    @vf.reward(weight=2.0)
    async def right(self, trace) -> float:
        if trace.last_reply == "raise":
            raise RuntimeError("a fault of the task's")
        return float(trace.last_reply == self.data.answer)

    @vf.reward
    async def short(self, task, trace) -> float:
        return 0.5 * (len(trace.last_reply) <= len(task.answer))


class Boxed(Double):
    NEEDS_CONTAINER = True


class Prepared(Double):
    async def setup(self, trace, runtime):
        raise AssertionError


class Unrewarded(vf.Task[Row]):
    pass


class Running(vf.Task[Row]):
    @vf.reward
    async def run(self, trace, runtime) -> float:
        return 1.0


KINDS = {
    "plain": Double, "endless": Double, "messages": Double, "user first": Double,
    "boxed": Boxed, "prepared": Prepared, "unrewarded": Unrewarded, "running": Running,
}  # fmt: skip


class Doubling(vf.Taskset[Double, Config]):
    def load(self) -> Iterator[Double]:
        kind = self.config.kind
        number = 0
        while kind == "endless" or number < self.config.numbers:
            prompt = f"Double {number}."
            messages = None if kind == "user first" else [{"role": "user", "content": prompt}]
            asked = prompt if kind not in ("messages", "user first") else messages
            yield KINDS[kind](Row(prompt=asked, system_prompt="Be short.", answer=str(2 * number)), self.config.task)
            number += 1

    @property
    def bounded(self) -> bool:
        return self.config.kind != "endless"
