"""A reward function of your own: right and short is worth more than right and long.

tppo-rl train file examples/reward.yaml
"""

from collections.abc import Sequence
from typing import Any


def short_and_right(
    *,
    correct: Sequence[bool | None],
    completion_ids: Sequence[Sequence[int]],
    per_token: float = 0.001,
    **columns: Any,
) -> list[float]:
    """1 for a right response, minus `per_token` for each of its tokens, but at least 0; 0 for a wrong one."""
    return [
        max(0.0, 1.0 - per_token * len(tokens)) if right else 0.0
        for right, tokens in zip(correct, completion_ids, strict=True)
    ]
