"""The way of finished responses to the train queue where slots are refilled at once: whole groups leave together.

    finished responses ─▶ GroupBuffer ─▶ complete groups ─┬─ returns differ ─▶ train queue
                                                          └─ all equal ──────▶ dropped, counted

The responses of a group end in any order. One that has ended waits for the others, and its tokens grow older meanwhile: they
count as open tokens for the bound on staleness. The others have begun, or are next in line, so that they come.

With dynamic sampling nothing is asked for in place of a group that is dropped: slots go on to the next prompts anyway, and an
update waits until enough groups are there that can teach something. Plain Python, tested without Ray.
"""

from __future__ import annotations

from collections.abc import Iterable

from tppo_rl.core.fragments import Fragment
from tppo_rl.rollout.groups import Group, GroupBuffer, GroupSample, has_variance


class GroupGate:
    """Lets complete groups pass.

    Args:
        buffer: Holds the responses whose groups are not complete.
        replace: Whether groups without variance are dropped.
        by_correctness: As of `has_variance`.
        batch_tokens: Sampled tokens of an update.
        max_rounds: Batches that may be dropped between two updates. Then all groups pass until the next update, so that a
            policy that is always right, or always wrong, does not make a run wait for ever.
    """

    def __init__(
        self, buffer: GroupBuffer, *, replace: bool, by_correctness: bool, batch_tokens: int, max_rounds: int
    ) -> None:
        self._buffer = buffer
        self._replace = replace
        self._by_correctness = by_correctness
        self._batch_tokens = batch_tokens
        self._max_rounds = max_rounds
        self._dropped_tokens = 0
        self._sample = GroupSample()

    def admit(self, fragments: Iterable[Fragment]) -> tuple[list[Group], list[Group]]:
        """Adds finished responses.

        Returns:
            The groups that are complete now and go to the train queue, and those that are complete and dropped.
        """
        admitted, dropped = [], []
        for group in self._buffer.add(fragments):
            useful = has_variance(group, by_correctness=self._by_correctness)
            self._sample.num_complete += 1
            self._sample.num_without_variance += not useful
            if useful or not self._replace or self._rounds > self._max_rounds:
                admitted.append(group)
                continue
            dropped.append(group)
            self._dropped_tokens += sum(map(len, group))
        self._sample.dropped += dropped
        return admitted, dropped

    def take_sample(self) -> GroupSample:
        """Returns the groups since the last call, of which `groups` is empty, and begins to count for the next update."""
        self._sample.rounds = self._rounds
        sample, self._sample = self._sample, GroupSample()
        self._dropped_tokens = 0
        return sample

    @property
    def _rounds(self) -> int:
        """Batches that were sampled or begun for this update."""
        return 1 + self._dropped_tokens // self._batch_tokens
