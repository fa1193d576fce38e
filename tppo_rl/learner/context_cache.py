"""Keys and values of open episodes, kept from update to update, so that a window's context is not computed again.

    update 7   prompt  window 0                     computed, and kept
    update 9   (kept . . . . .) window 1            window 1 alone is computed, and kept as well
    update 12  (kept . . . . . . . . . .) window 2  finished: dropped after the update

The kept states are as old as the update that trained them. The same holds for the memories of Transformer-XL (arXiv
1901.02860), and for an engine that keeps keys and values when its weights change.
"""

from __future__ import annotations

import torch

from tppo_rl.learner.batch import TrainBatch, last_positions
from tppo_rl.learner.contexts import Contexts, Shapes, context_lengths, no_contexts, recorded
from tppo_rl.learner.packing import ModelInput


class ContextCache:
    """States of one model in open episodes, on the CPU, up to the last state that predicted a token of a trained window."""

    def __init__(self, max_positions: int) -> None:
        """Makes an empty cache.

        Args:
            max_positions: Most positions of all episodes together. Beyond them, episodes are dropped: first those without
                a new window for the longest time. Missing states are computed when they are needed.
        """
        self._max_positions = max_positions
        self._states: dict[int, torch.Tensor] = {}
        self._values: dict[int, torch.Tensor] = {}
        self._shapes: Shapes = ()

    @property
    def num_positions(self) -> int:
        """Number of positions of all episodes together."""
        return sum(map(len, self._states.values()))

    def contexts(self, batch: TrainBatch) -> Contexts:
        """Returns the cached parts of the contexts of a batch's windows; the part of an unknown episode is empty."""
        wanted = context_lengths(batch).tolist()
        parts = [
            self._states[episode][:length] if episode in self._states else torch.zeros(0, 0)
            for episode, length in zip(batch.episode_ids.tolist(), wanted, strict=True)
        ]
        known = [part for part in parts if len(part)]
        if not known:
            return no_contexts(len(batch))
        return Contexts(torch.tensor([len(part) for part in parts]), torch.cat(known), self._shapes)

    def values(self, batch: TrainBatch, contexts: Contexts) -> list[torch.Tensor]:
        """Returns the values that were kept with `contexts` of the batch, float32, one tensor for each sequence."""
        return [
            self._values[episode][:length] if length else torch.zeros(0)
            for episode, length in zip(batch.episode_ids.tolist(), contexts.lengths.tolist(), strict=True)
        ]

    def keep(
        self,
        batch: TrainBatch,
        rows: torch.Tensor,
        contexts: Contexts,
        inputs: ModelInput,
        values: list[torch.Tensor] | None = None,
    ) -> None:
        """Keeps the contexts of episodes that go on, and the states that were read after them.

        Args:
            batch: B sequences.
            rows: int64 [b], sequences that were read.
            contexts: Contexts after which they were read.
            inputs: Input of the model, laid out with `record`.
            values: The critic's value at every position of each of the B sequences; None for the policy.
        """
        stops = last_positions(batch.window)
        known_lengths = [len(self._states.get(episode, ())) for episode in batch.episode_ids[rows.numpy()].tolist()]
        is_new = torch.tensor(known_lengths, dtype=torch.int64) < stops[rows]
        going_on = (is_new & ~(batch.finished | batch.hindsight)[rows]).nonzero()[:, 0]
        if not len(going_on):
            return
        states, self._shapes = recorded(inputs, going_on)
        for own, row in zip(states, rows[going_on].tolist(), strict=True):
            episode, stop = int(batch.episode_ids[row]), int(stops[row])
            # The same rows may hold a later window of the episode.
            known = self._states.get(episode)
            if known is not None and len(known) >= stop:
                continue
            context = contexts.of(row)
            new = own[: stop - len(context)]
            self._states.pop(episode, None)
            self._states[episode] = torch.cat([context, new]) if len(context) else new.clone()
            if values is not None:
                self._values[episode] = values[row][:stop].clone()
        while self._states and self.num_positions > self._max_positions:
            self._drop(next(iter(self._states)))

    def drop_finished(self, batch: TrainBatch) -> None:
        """Drops the episodes that have finished in a batch."""
        for episode in batch.episode_ids[batch.finished.numpy()].tolist():
            self._drop(episode)

    def clear(self) -> None:
        """Drops everything."""
        self._states.clear()
        self._values.clear()

    def _drop(self, episode: int) -> None:
        self._states.pop(episode, None)
        self._values.pop(episode, None)
