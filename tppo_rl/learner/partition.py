"""Partition of a batch's fragments among learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tppo_rl.core.fragments import Fragment


def partition(
    fragments: Sequence[Fragment], num_learners: int, *, whole_groups: bool = False, same_learner: bool = False
) -> list[list[Fragment]]:
    """Divides fragments among learners so that all process about as many tokens; a shard may be empty.

    With `whole_groups` all fragments of one prompt go to one learner. With `same_learner` the windows of an episode go to
    the same learner in all updates, because it has their contexts; shards are then even in the long run alone.
    """
    units: dict[Any, list[Fragment]] = {}
    for index, fragment in enumerate(fragments):
        units.setdefault(fragment.prompt_index if whole_groups else index, []).append(fragment)
    result: list[list[Fragment]] = [[] for _ in range(num_learners)]
    if same_learner:
        for unit in units.values():
            home = unit[0].prompt_index if whole_groups else unit[0].episode_id
            result[home % num_learners] += unit
        return result
    loads = [0] * num_learners
    sizes = {key: sum(fragment.num_positions for fragment in unit) for key, unit in units.items()}
    for key in sorted(units, key=sizes.__getitem__, reverse=True):
        lightest = loads.index(min(loads))
        result[lightest] += units[key]
        loads[lightest] += sizes[key]
    return result
