"""Episodes as a run records them, without a run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tppo_rl.core.fragments import Fragment
from tppo_rl.core.recorded_windows import recorded_window
from tppo_rl.experiment.recorded_episodes import Episode, Window, episodes_of

HOSTILE = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=2>",
    "<!--<script>",
    "]]><svg onload=window.pwned=3>",
    "\u2028\u2029\u202e\x00",
    "javascript:window.pwned=4",
    "{{ 7 * 7 }}",
    "&lt;b&gt;",
)
WORDS = (
    *HOSTILE,
    *[
        "",
        "the",
        "a",
        "so",
        "then",
        "we",
        "get",
        "answer",
        "is",
        "=",
        "+",
        "3",
        "5",
        "7",
        "\n",
        ".",
        ",",
        "because",
        "12",
        "therefore",
    ],
    "\n",
)
BYTES_FROM = 400
"""Ids from here on are bytes."""


class PieceTokenizer:
    """Ids below `BYTES_FROM` are the words, again and again with a number; the others are bytes, as in SentencePiece."""

    all_special_ids = (1,)

    def get_vocab(self) -> dict[str, int]:
        return {}

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        return [f"<0x{one - BYTES_FROM:02X}>" if one >= BYTES_FROM else self._word(one) for one in ids]

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        raw = b"".join(
            bytes([int(one) - BYTES_FROM]) if one >= BYTES_FROM else self._word(int(one)).encode() for one in ids
        )
        return raw.decode("utf-8", errors="replace")

    def _word(self, token: int) -> str:
        word = WORDS[token % len(WORDS)]
        return word if token < len(WORDS) else f" {word}{token}"


def ids_of(text: str) -> list[int]:
    """The bytes of a text as tokens."""
    return [BYTES_FROM + byte for byte in text.encode()]


def windows_of(
    number: int,
    tokens: Sequence[int],
    *,
    prompt: Sequence[int],
    prompt_index: int,
    iteration: int,
    length: int,
    with_values: bool = True,
    reward: float = 1.0,
    correct: bool | None = True,
) -> list[Window]:
    """All windows of an episode that ends with its last token."""
    random = np.random.default_rng(number)
    windows = []
    ids = np.array(tokens, np.int32)
    count = len(ids)
    values = 0.5 + 0.3 * np.sin(np.arange(count + 1) / 37) + random.normal(0, 0.02, count + 1)
    for index, start in enumerate(range(0, count, length)):
        stop = min(count, start + length)
        is_last = stop == count
        context = np.array([*prompt, *ids[:start]], np.int32)
        size = stop - start
        fragment = Fragment(
            episode_id=number,
            prompt_index=prompt_index,
            env_runner=1,
            window_index=index,
            prompt_length=len(prompt),
            context=context,
            context_sampled=np.array([0] * len(prompt) + [1] * start, np.uint8),
            context_rewards=np.zeros(len(context), np.float32),
            tokens=ids[start:stop],
            sampled=np.ones(size, np.uint8),
            behavior_log_probs=-random.exponential(0.7, size).astype(np.float32),
            versions=np.full(size, max(0, iteration + index - 1 - int(random.integers(0, 4))), np.int32),
            rewards=np.array([0.0] * (size - 1) + [reward if is_last else 0.0], np.float32),
            terminated=is_last,
            truncated=False,
            correct=correct if is_last else None,
        )
        known = recorded_window(
            fragment,
            values=values[start:stop] if with_values else None,
            advantages=random.normal(0, 0.4, size) if with_values else None,
            boundary_value=float(values[stop]) if with_values else None,
        )
        windows.append(Window(iteration + index, known))
    return windows


def many_episodes(count: int, *, mean_length: int, longest: int = 8000, with_values: bool = True) -> list[Episode]:
    """Groups of four answers to prompts of which each comes again and again; some answers have `longest` tokens."""
    random = np.random.default_rng(5)
    windows: list[Window] = []
    for number in range(count):
        length = longest if number % 500 == 7 else max(1, int(random.gamma(2.0, mean_length / 2)))
        group = number // 4
        question = group % max(1, count // 40)
        windows += windows_of(
            number,
            random.integers(0, BYTES_FROM, min(length, longest)).tolist(),
            prompt=[20, 30, 40 + question % 300, 41 + question // 300, 25],
            prompt_index=group,
            iteration=1 + number // 20,
            length=512,
            with_values=with_values,
            reward=float(random.random() < 0.6),
            correct=bool(random.random() < 0.6),
        )
    return episodes_of((), windows)
