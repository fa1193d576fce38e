"""The driver's side of windows that are not trained: the ledger drops their tokens, and their groups do not wait for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.groups import GroupBuffer
from tppo_rl.rollout.ledger import Ledger

TOO_OLD = "too_old"
"""Reason for which responses are dropped that are older than `max_staleness` allows."""


def too_old(fragments: Sequence[Fragment], oldest_trainable: int) -> dict[int, str]:
    """Returns the responses that have a token older than a version, as `left_out` of `without_left_out`."""
    return {one.episode_id: TOO_OLD for one in fragments if one.oldest_version < oldest_trainable}


def without_left_out(
    fragments: Sequence[Fragment], left_out: Mapping[int, str], ledger: Ledger, groups: GroupBuffer | None
) -> list[Fragment]:
    """Counts the last windows of episodes that are left out as dropped, and returns the other fragments.

    Earlier windows of these episodes stay what they are: they wait for an update, or were trained.

    Args:
        fragments: Fragments that the ledger counts as queued.
        left_out: Reason by episode.
        ledger: Of the run.
        groups: Where the others of a group wait; None where no whole responses are compared.
    """
    kept = []
    for fragment in fragments:
        if not (fragment.finished and fragment.episode_id in left_out):
            kept.append(fragment)
            continue
        ledger.record_dropped(left_out[fragment.episode_id], len(fragment))
        if groups is not None:
            groups.leave_out(fragment.prompt_index)
    return kept
