"""A package of verifiers' first form: double a number. With verifiers 0.1 it is made of that, else of classes of the same shape."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

try:
    import verifiers as vf
    from datasets import Dataset

    SingleTurnEnv, MultiTurnEnv, Rubric, RubricGroup = vf.SingleTurnEnv, vf.MultiTurnEnv, vf.Rubric, vf.RubricGroup
except (ImportError, AttributeError):

    class Dataset(list):  # type: ignore[no-redef]
        @classmethod
        def from_list(cls, rows: Any) -> Dataset:
            return cls(rows)

    class Rubric:  # type: ignore[no-redef]
        def __init__(self, funcs: Any = (), weights: Any = None) -> None:
            self.funcs, self.weights = list(funcs), list(weights or [1.0] * len(funcs))
            self.parser = SimpleNamespace(parse_answer=lambda completion: completion[-1]["content"])
            self.class_objects = {"parser": self.parser}

    class RubricGroup(Rubric):  # type: ignore[no-redef]
        def __init__(self, rubrics: Any) -> None:
            super().__init__()
            self.rubrics = rubrics

    class MultiTurnEnv:  # type: ignore[no-redef]
        message_type = "chat"

        def __init__(self, dataset: Any, rubric: Any, system_prompt: str | None = None, max_turns: int = 10) -> None:
            before = [{"role": "system", "content": system_prompt}] if system_prompt else []
            ask = "question"
            rows = [{**row, "prompt": [*before, {"role": "user", "content": row[ask]}]} for row in dataset]
            self.rubric, self.system_prompt, self.max_turns = rubric, system_prompt, max_turns
            self.get_dataset = lambda: rows

    class SingleTurnEnv(MultiTurnEnv):  # type: ignore[no-redef]
        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, max_turns=1)


def right(completion: Any, answer: str) -> float:
    if completion[-1]["content"] == "raise":
        raise RuntimeError("a fault of the package's")
    return float(completion[-1]["content"] == answer)


async def parsed(parser: Any, completion: Any, info: Any, **kwargs: Any) -> float:
    assert kwargs["state"]["completion"] == kwargs["state"]["completion"]
    return float(parser.parse_answer(completion) == info["half"])


def metric(completion: Any) -> float:
    raise AssertionError("without a weight it is no reward")


def of_group(completions: Any) -> list[float]:
    return [0.0 for _ in completions]


def load_environment(numbers: int = 100, kind: str = "single", twice: bool = False) -> Any:
    rows = [{"question": f"Double {k}.", "answer": str(2 * k), "info": {"half": str(k)}} for k in range(numbers)]
    rubrics = [Rubric(funcs=[right, metric], weights=[2.0, 0.0]), Rubric(funcs=[parsed], weights=[0.5])]
    rubric = Rubric(funcs=[of_group]) if kind == "group" else Rubric() if kind == "none" else RubricGroup(rubrics)
    dataset = Dataset.from_list(rows * (1 + twice))
    if kind == "multi":

        class Asking(MultiTurnEnv):
            async def env_response(self, messages: Any, state: Any, **kwargs: Any) -> Any:
                raise NotImplementedError

        return Asking(dataset=dataset, rubric=rubric)
    return SingleTurnEnv(dataset=dataset, rubric=rubric, system_prompt="Be short.")
