"""Builders shared by tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tppo_rl.core.fragments import Fragment


def make_fragment(
    *,
    tokens: Sequence[int] = (5, 6, 7),
    context: Sequence[int] = (1, 2),
    versions: Sequence[int] | None = None,
    sampled: Sequence[int] | None = None,
    rewards: Sequence[float] | None = None,
    **fields: Any,
) -> Fragment:
    """A fragment with the given tokens; everything else is plain unless said otherwise."""
    count = len(tokens)
    values: dict[str, Any] = {
        "episode_id": 0,
        "prompt_index": 0,
        "env_runner": 1,
        "window_index": 0,
        "prompt_length": len(context),
        "context": np.array(context, np.int32),
        "context_sampled": np.zeros(len(context), np.uint8),
        "context_rewards": np.zeros(len(context), np.float32),
        "tokens": np.array(tokens, np.int32),
        "sampled": np.array(sampled if sampled is not None else [1] * count, np.uint8),
        "behavior_log_probs": np.full(count, -1.0, np.float32),
        "versions": np.array(versions if versions is not None else [0] * count, np.int32),
        "rewards": np.array(rewards if rewards is not None else [0.0] * count, np.float32),
        "terminated": False,
        "truncated": False,
        "correct": None,
    }
    return Fragment(**(values | fields))


class CountingEnv:
    """A text environment without Gymnasium: right answers are those of even length, `turns` turns an episode."""

    def __init__(self, turns: int = 1) -> None:
        self._turns = turns
        self._turn = 0
        self.num_closed = 0

    def reset(self, *, seed: int) -> tuple[str, dict[str, Any]]:
        self._turn = 0
        return f"problem {seed}", {}

    def step(self, text: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        self._turn += 1
        ended = self._turn == self._turns
        right = len(text) % 2 == 0
        return "go on", float(right and ended), ended, False, {"correct": right} if ended else {}

    def close(self) -> None:
        self.num_closed += 1


class IntegerChat:
    """A chat whose texts are made of numbers: token ids in, token ids out."""

    vocabulary_size = 64
    end_of_turn = (0,)
    has_stops = False

    def prompt(self, text: str, earlier: Sequence[Any] = (), tools: Sequence[Any] = ()) -> list[int]:
        return [60, int(text.split()[1]) % 50 + 1, 61]

    def user_turn(self, text: str, *, is_closed: bool = True) -> list[int]:
        return [62, 63] if is_closed else [0, 62, 63]

    def text(self, tokens: Sequence[int]) -> str:
        return "x" * len(tokens)
