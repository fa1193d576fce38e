"""Finished episodes that wait until the critic's batch is full.

Monte-Carlo targets come from finished episodes alone, so their number varies from update to update; a critic that is
trained on few of them follows noise. All learners release what they hold in the same update, or none does.
"""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa
import torch

from tppo_rl.core.fragments import Fragment, fragments_from_table, owned, table_from_fragments
from tppo_rl.learner.collective import Collective


class ValueBuffer:
    """Holds finished fragments, which bring their whole episode along as context."""

    def __init__(self, num_tokens: int, collective: Collective) -> None:
        """Sets the size of a value batch.

        Args:
            num_tokens: Response tokens per learner.
            collective: The learners that release together.
        """
        self._limit = num_tokens * collective.size
        self._collective = collective
        self._held: list[Fragment] = []

    def exchange(self, fragments: Iterable[Fragment]) -> list[Fragment]:
        """Adds the finished ones of `fragments`; returns everything held if that fills the batch, else nothing."""
        self._held += [owned(fragment) for fragment in fragments if fragment.finished]
        held = torch.tensor([sum(_response_tokens(fragment) for fragment in self._held)])
        if int(self._collective.sum_(held)) < self._limit:
            return []
        released, self._held = self._held, []
        return released

    def table(self) -> pa.Table:
        """What this learner holds (`FRAGMENT_SCHEMA`)."""
        return table_from_fragments(self._held)

    def hold(self, table: pa.Table) -> None:
        """Holds this learner's share of the episodes in `table`, and nothing else."""
        share = fragments_from_table(table)[self._collective.rank :: self._collective.size]
        self._held = [owned(fragment) for fragment in share]


def _response_tokens(fragment: Fragment) -> int:
    return int(fragment.context_sampled.sum(dtype=int)) + len(fragment)
