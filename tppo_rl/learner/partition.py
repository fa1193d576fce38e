"""Partition of a batch's fragments among learners."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tppo_rl.core.fragments import Fragment
from tppo_rl.learner.hindsight import joined


def partition(
    fragments: Sequence[Fragment], num_learners: int, *, whole_groups: bool = False, same_learner: bool = False
) -> list[list[Fragment]]:
    """Divides fragments among learners so that all process about as many tokens; a shard may be empty.

    Windows of one episode that are trained in hindsight go to one learner, which processes them as one sequence. With
    `whole_groups` all fragments of one prompt go to one learner. With `same_learner` the windows of an episode go to
    the same learner in all updates, because it has their contexts; shards are then even in the long run alone.
    """
    units: dict[Any, list[Fragment]] = {}
    for index, fragment in enumerate(fragments):
        again = fragment.hindsight_residual is not None
        key = fragment.prompt_index if whole_groups else ("hindsight", fragment.episode_id) if again else index
        units.setdefault(key, []).append(fragment)
    result: list[list[Fragment]] = [[] for _ in range(num_learners)]
    if same_learner:
        for unit in units.values():
            home = unit[0].prompt_index if whole_groups else unit[0].episode_id
            result[home % num_learners] += unit
        return result
    loads = [0] * num_learners
    sizes = {key: sum(row.fragment.num_positions for row in joined(unit)) for key, unit in units.items()}
    for key in sorted(units, key=sizes.__getitem__, reverse=True):
        lightest = loads.index(min(loads))
        result[lightest] += units[key]
        loads[lightest] += sizes[key]
    return result
