"""What contexts of a batch have in common: every part that several begin with is computed once.

    system, examples, question A  x 4      level 0    system, examples
    system, examples, question B  x 4      level 1    question A    question B

Prompts share their system prompt and examples, the responses of a group their whole prompt. Each part is a segment: it is
computed after the part before it, and serves every sequence that begins with both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

MIN_SHARED = 16
"""Fewest tokens of a segment that more than one sequence shares: shorter ones do not make up for a pass of their own."""


_Part = tuple[Sequence[int], Sequence[int], int, int]
"""Sequences, what neighbors share, first position, level."""


@dataclass(frozen=True)
class Segment:
    """Positions `start` to `stop` of sequences that have the same tokens up to `stop`."""

    rows: tuple[int, ...]
    start: int
    stop: int


def shared_segments(
    tokens: torch.Tensor, starts: torch.Tensor, stops: torch.Tensor, apart: torch.Tensor
) -> list[list[Segment]]:
    """Divides positions `starts[i]` to `stops[i]` of each sequence into segments.

    Args:
        tokens: int64 [B, T].
        starts: int64 [B], first position of each sequence that is to be computed.
        stops: int64 [B], position behind its last one; sequences with nothing to compute have no segment.
        apart: bool [B], sequences that share nothing, because what stands before them is their own.

    Returns:
        Levels: the segments of one follow on segments of those before.
    """
    levels: list[list[Segment]] = []
    start, stop = starts.tolist(), stops.tolist()
    rows = [row for row in range(len(start)) if stop[row] > start[row]]
    for row in rows:
        if apart[row]:
            _at(levels, 0).append(Segment((row,), start[row], stop[row]))
    texts = {row: tokens[row, : stop[row]].numpy() for row in rows if not apart[row]}
    # Big-endian bytes sort as the tokens do, without a Python number for each of them.
    ordered = sorted(texts, key=lambda row: texts[row].astype(">i8").tobytes())
    shared = [_shared_length(texts[one], texts[other]) for one, other in pairwise(ordered)]
    # Windows of one long response may follow on one another hundreds of times: no recursion.
    parts: list[_Part] = [(ordered, shared, 0, 0)]
    while parts:
        parts += _divide(*parts.pop(), texts, levels)
    return levels


def _divide(
    rows: Sequence[int],
    shared: Sequence[int],
    start: int,
    level: int,
    texts: dict[int, np.ndarray],
    levels: list[list[Segment]],
) -> list[_Part]:
    """Adds the segments that begin at `start`, and returns what is left after each of them.

    Args:
        rows: Sequences in the order of their tokens, the same up to `start`.
        shared: First tokens that neighbors have in common.
        start: Where the segments begin.
        level: Of the segments.
        texts: Tokens of each sequence.
        levels: Receives the segments.
    """
    rest: list[_Part] = []
    first = 0
    for last in range(len(rows)):
        if last + 1 < len(rows) and _go_together(rows[last], rows[last + 1], shared[last], start, texts):
            continue
        cluster, within = rows[first : last + 1], shared[first:last]
        stop = min(within, default=len(texts[cluster[0]]))
        if stop > start:
            _at(levels, level).append(Segment(tuple(cluster), start, stop))
        # A sequence that ends here sorts before all that go on.
        ended = sum(len(texts[row]) == stop for row in cluster)
        if ended < len(cluster):
            rest.append((cluster[ended:], within[ended:], stop, level + 1))
        first = last + 1
    return rest


def _go_together(one: int, other: int, shared: int, start: int, texts: dict[int, np.ndarray]) -> bool:
    """Whether what two sequences have in common is worth a segment, which equal ones have anyway."""
    return shared >= start + MIN_SHARED or shared == len(texts[one]) == len(texts[other])


def _at(levels: list[list[Segment]], level: int) -> list[Segment]:
    while len(levels) <= level:
        levels.append([])
    return levels[level]


def _shared_length(one: np.ndarray, other: np.ndarray) -> int:
    length = min(len(one), len(other))
    different = np.flatnonzero(one[:length] != other[:length])
    return int(different[0]) if len(different) else length
