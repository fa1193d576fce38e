"""Files of a run beside RLlib's results: TensorBoard events, boundary errors, a sample of rollouts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tensorboardX import SummaryWriter

from tppo_rl.core.boundaries import ClosedBoundary
from tppo_rl.core.fragments import Fragment, table_from_fragments
from tppo_rl.core.paths import ROLLOUTS
from tppo_rl.observability.boundary_errors import append_boundary_errors, sum_boundary_errors

_TEXTS_PER_ITERATION = 4


TextOf = Callable[[Sequence[int]], str]
"""Decodes token ids."""


class RunLog:
    """Writes under `folder`: `tensorboard/`, `boundary_errors.jsonl` and `rollouts/iteration_*.parquet`.

    Args:
        folder: the run's folder; made if it does not exist.
        fragments_per_iteration: most fragments of an iteration that go into its Parquet file.
        to_text: decodes tokens for a reader.
        seed: seed of the choice of fragments.
        position_bin_width: width of a bin of positions in `boundary_errors.jsonl`, in tokens.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fragments_per_iteration: int,
        to_text: TextOf,
        seed: int,
        position_bin_width: int,
    ) -> None:
        self._folder = folder
        self._rollouts = folder / ROLLOUTS
        self._rollouts.mkdir(parents=True, exist_ok=True)
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        self._fragments_per_iteration = fragments_per_iteration
        self._to_text = to_text
        self._random = random.Random(seed)
        self._position_bin_width = position_bin_width

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Writes metrics under their names; `step` is in sampled tokens."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def histogram(self, step: int, name: str, counts: np.ndarray) -> None:
        """Writes a histogram over 0, 1, 2, …, given the count of each."""
        if counts.sum() > 0:
            self._writer.add_histogram(name, np.repeat(np.arange(len(counts)), counts.astype(np.int64)), step)

    def boundary_errors(self, iteration: int, boundaries: Sequence[ClosedBoundary]) -> None:
        """Writes the errors of the boundaries whose episodes ended in the iteration, if there are any."""
        if boundaries:
            width = self._position_bin_width
            append_boundary_errors(self._folder, iteration, width, sum_boundary_errors(boundaries, width))

    def rollouts(self, iteration: int, step: int, fragments: Sequence[Fragment]) -> None:
        """Keeps a random sample of fragments, and shows some of its finished episodes as text."""
        if not fragments or not self._fragments_per_iteration:
            return
        chosen = self._random.sample(list(fragments), min(self._fragments_per_iteration, len(fragments)))
        pq.write_table(table_from_fragments(chosen), self._rollouts / f"iteration_{iteration:06d}.parquet")
        finished = [fragment for fragment in chosen if fragment.finished][:_TEXTS_PER_ITERATION]
        if finished:
            self._writer.add_text("rollouts", "\n\n".join(map(self._describe, finished)), step)

    def close(self) -> None:
        """Flushes and closes the event file."""
        self._writer.close()

    def _describe(self, fragment: Fragment) -> str:
        tokens = np.concatenate([fragment.context, fragment.tokens])
        prompt = self._to_text(tokens[: fragment.prompt_length].tolist())
        response = self._to_text(tokens[fragment.prompt_length :].tolist())
        ending = "terminated" if fragment.terminated else "truncated"
        reward = float(fragment.context_rewards.sum() + fragment.rewards.sum())
        return f"`{prompt}` → `{response}` ({ending}, return {reward:g}, correct {fragment.correct})"
