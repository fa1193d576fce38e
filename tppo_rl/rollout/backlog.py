"""What env-runners have handed over and no update has trained yet: the train queue, and responses that wait for their groups.

                              windows ──────────────▶ TrainQueue ──batch──▶ update
fragments ─▶ left out? ─▶ whole responses ─▶ groups ───▲
                │                              │
                └────────▶ dropped ◀───────────┘ no variance (dynamic sampling), too old
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.rollout.group_gate import GroupGate
from tppo_rl.rollout.groups import Group, GroupBuffer, GroupSample
from tppo_rl.rollout.ledger import Ledger
from tppo_rl.rollout.left_out import TOO_OLD, too_old, without_left_out
from tppo_rl.rollout.train_queue import TrainQueue, oldest_allowed_to_stay


class Backlog:
    """Takes fragments and gives the batches of updates; what it drops, the ledger hears of.

    Args:
        options: Of the run.
        ledger: Of the run.
        queued: What the train queue holds at first, in its order.
        grouped: Responses that wait for the others of their groups.
        left_out: Number of responses that groups miss, by prompt.
    """

    def __init__(
        self,
        options: Options,
        ledger: Ledger,
        queued: Sequence[Fragment] = (),
        grouped: Iterable[Fragment] = (),
        left_out: Mapping[int, int] | None = None,
    ) -> None:
        self.queue = TrainQueue()
        self.groups = GroupBuffer(options.groups.group_size, left_out)
        self.groups.add(grouped)
        self._ledger = ledger
        self._batch_tokens = options.batch_tokens
        self._max_staleness = options.pipeline.max_staleness
        self._drops_old = options.pipeline.old_responses == "drop"
        self._whole_responses = not options.rollout.has_windows
        self._gate: GroupGate | None = None
        # Where a step makes whole groups they are put together after it (`groups.sample_groups`).
        if self._whole_responses and not options.waits_for_longest:
            self._gate = GroupGate(
                self.groups,
                replace=options.groups.dynamic_sampling,
                by_correctness=not options.rewards.rewards.is_environment,
                batch_tokens=options.batch_tokens,
                max_rounds=options.groups.dynamic_sampling_max_rounds,
            )
        if self._gate is None:
            self.queue.push(queued)
        else:
            for _, group in groupby(queued, key=lambda fragment: fragment.prompt_index):
                self.queue.push_group(list(group))

    @property
    def num_tokens(self) -> int:
        """Sampled tokens that wait for an update or for their groups."""
        return self.queue.num_tokens + self.groups.num_tokens

    @property
    def oldest_waiting_for_group(self) -> int | None:
        """Oldest version of the tokens that wait for their groups while env-runners go on; None if there are none."""
        return None if self._gate is None else self.groups.oldest_version

    @property
    def is_bounded(self) -> bool:
        """Whether staleness is bounded by what updates wait for, and not by new weights before every step."""
        return self._gate is not None

    def add(self, fragments: Sequence[Fragment], left_out: Mapping[int, str], version: int) -> int:
        """Takes the fragments of one answer, which the ledger counts as queued.

        Args:
            fragments: Of the answer.
            left_out: Reasons for which episodes are not trained.
            version: The trainer's.

        Returns:
            The number of fragments that were not left out for these reasons.
        """
        groups = self.groups if self._whole_responses else None
        kept = without_left_out(fragments, left_out, self._ledger, groups)
        old = too_old(kept, version - self._max_staleness) if self._drops_old else {}
        self._push(without_left_out(kept, old, self._ledger, groups))
        return len(kept)

    def miss(self, prompt_indices: Iterable[int]) -> None:
        """Is told of prompts for which a response will not come."""
        if self._whole_responses:
            for prompt_index in prompt_indices:
                self.groups.leave_out(prompt_index)

    def drop_too_old(self, version: int) -> None:
        """Drops the responses that have become too old while they waited, where that is asked for."""
        if not self._drops_old:
            return
        oldest = version - self._max_staleness
        for fragment in (*self.queue.pop_older_than(oldest), *self.groups.pop_older_than(oldest)):
            self._ledger.record_dropped(TOO_OLD, len(fragment))
        self._push([])

    def pop_batch(self, version: int) -> list[Fragment]:
        """Removes and returns the fragments of the update at a version of the trainer's."""
        stay = oldest_allowed_to_stay(version, self._max_staleness)
        return self.queue.pop(self._batch_tokens, oldest_allowed_to_stay=stay)

    def pop_all(self) -> list[Fragment]:
        """Empties the train queue."""
        return self.queue.pop(self.queue.num_tokens, oldest_allowed_to_stay=0)

    def take_group_sample(self) -> GroupSample | None:
        """Returns the groups that are complete since the last call; None where a step makes whole groups, or there are none."""
        return None if self._gate is None or self.groups.group_size == 1 else self._gate.take_sample()

    def record_dropped_groups(self, groups: Iterable[Group]) -> None:
        """Counts groups without variance as dropped."""
        for group in groups:
            self._ledger.record_dropped("no_variance", sum(map(len, group)))

    def state(self) -> dict[str, Any]:
        """Returns the state for a checkpoint."""
        return {
            "queue": table_from_fragments(self.queue.fragments()),
            "grouped": table_from_fragments(self.groups.fragments()),
            "left_out": self.groups.left_out,
        }

    def _push(self, fragments: list[Fragment]) -> None:
        if self._gate is None:
            self.queue.push(fragments)
            return
        admitted, dropped = self._gate.admit(fragments)
        self.record_dropped_groups(dropped)
        for group in admitted:
            self.queue.push_group(group)
