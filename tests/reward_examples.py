"""Reward functions in the shapes of TRL's documentation and of verl's reward scores."""

from __future__ import annotations

import asyncio
import re
import threading
from typing import Any


def num_unique_chars(completions, **kwargs):  # type: ignore[no-untyped-def]
    """TRL: a plain function of the completions."""
    return [float(len(set(completion))) for completion in completions]


def think_format(completions, **kwargs):  # type: ignore[no-untyped-def]
    """TRL: conversations, and a format with tags."""
    pattern = r"^<think>(?!.*<think>)(.*?)</think>.*$"
    contents = [completion[0]["content"] for completion in completions]
    return [1.0 if re.match(pattern, content, re.DOTALL | re.MULTILINE) else 0.0 for content in contents]


def accuracy(prompts, completions, ground_truth, **kwargs):  # type: ignore[no-untyped-def]
    """TRL: a column of the data, and the last box."""
    matches = [re.search(r"\\boxed\{(.*?)\}", completion) for completion in completions]
    contents = [match.group(1) if match else "" for match in matches]
    return [1.0 if content == truth else 0.0 for content, truth in zip(contents, ground_truth, strict=True)]


def math_only(prompts, completions, task, **kwargs):  # type: ignore[no-untyped-def]
    """TRL: None where the reward does not apply to the row."""
    return [1.0 if kind == "math" and "4" in text else None for text, kind in zip(completions, task, strict=True)]


async def slow_length(prompts, completions, **kwargs):  # type: ignore[no-untyped-def]
    """TRL: an async function."""
    await asyncio.sleep(0.01)
    return [float(len(completion)) for completion in completions]


def with_trainer(completions, completion_ids, trainer_state, log_extra=None, log_metric=None, **kwargs):  # type: ignore[no-untyped-def]
    """TRL: the trainer's state, further columns and metrics to log."""
    assert "trainer_state" not in kwargs
    log_extra("length", [len(ids) for ids in completion_ids])
    log_extra("text", completions)
    log_metric("half", 0.5)
    return [float(trainer_state.global_step)] * len(completions)


def compute_score(
    data_source, solution_str, ground_truth, extra_info=None, method="strict", format_score=0.1, **kwargs
):  # type: ignore[no-untyped-def]
    """verl: the last number after #### of GSM8K."""
    assert data_source in ("", "openai/gsm8k")
    found = re.findall(r"#### (\-?[0-9\.\,]+)", solution_str)
    if not found:
        return 0.0
    answer = found[-1].replace(",", "")
    return 1.0 if answer == ground_truth else format_score * kwargs.get("scale", 1.0)


def compute_score_dict(data_source, solution_str, ground_truth, extra_info=None):  # type: ignore[no-untyped-def]
    """verl: a mapping with `score` and further numbers."""
    right = solution_str.strip() == str(ground_truth)
    return {"score": 1.0 if right else -1.0, "acc": right, "pred": solution_str, "length": len(solution_str)}


async def compute_score_async(data_source, solution_str, ground_truth, extra_info=None):  # type: ignore[no-untyped-def]
    """verl: async."""
    await asyncio.sleep(0.01)
    if solution_str == "boom":
        raise RuntimeError("no judge")
    return float(solution_str == ground_truth)


calls: list[int] = []
"""Number of responses of each call of `counting`."""


def counting(completions: list[str], *, fail_on: str = "", give: Any = 1.0, **columns: Any) -> list[Any]:
    """Fails on one text, every time."""
    calls.append(len(completions))
    if fail_on in completions and fail_on:
        raise ValueError(f"cannot score {fail_on!r}")
    return [give] * len(completions)


def once(completions: list[str], **columns: Any) -> list[float]:
    """Fails at its first call."""
    calls.append(len(completions))
    if len(calls) == 1:
        raise ConnectionError("the judge is away")
    return [2.0] * len(completions)


def broken(completions: list[str], *, value: Any = None, **columns: Any) -> Any:
    """Returns what it is told."""
    return value


def leaving(completions: list[str], **columns: Any) -> list[float]:
    raise SystemExit(2)


def late(completions: list[str], **columns: Any) -> list[float]:
    calls.append(len(completions))
    raise TimeoutError("deadline")


async def async_leaving(completions: list[str], **columns: Any) -> list[float]:
    raise SystemExit(2)


barrier = threading.Barrier(2, timeout=5)


async def meets(completions: list[str], **columns: Any) -> list[float]:
    """Returns only where another call of it runs at the same time."""
    await asyncio.get_running_loop().run_in_executor(None, barrier.wait)
    return [1.0] * len(completions)


class Judge:
    """A callable object with settings."""

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        return [self.scale * len(text) for text in completions]


def weighs(completions: list[str], *, weight: float = 0.5, **columns: Any) -> list[float]:
    """Has an argument whose name belongs to the list of parts."""
    return [weight] * len(completions)


def strict_columns(completions: list[str], answer: list[str]) -> list[float]:
    """Names what it takes and nothing else."""
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]
