"""Whole episodes of a run.

episodes/iteration_*.parquet    episodes of the training, window by window as they are trained
episodes/heldout_*.parquet      responses to the same held-out prompts, by the number of updates before the evaluation
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tppo_rl.core.fragments import Fragment
from tppo_rl.core.paths import EPISODES
from tppo_rl.core.recorded_windows import RecordedWindow, recorded_window, table_from_windows


class EpisodeLog:
    """Chooses episodes at their first window and keeps all of their windows.

    Prompts have an order of their own, drawn by `seed`, and the first ones of an iteration are chosen. So a prompt that comes
    again is likely chosen again, and the responses to one prompt are chosen together.

    Args:
        folder: the run's folder; `episodes/` is made with its first file.
        episodes_per_iteration: most episodes whose first window an iteration trains.
        seed: seed of the order.
    """

    def __init__(self, folder: Path, *, episodes_per_iteration: int, seed: int) -> None:
        self._folder = folder / EPISODES
        self._most = episodes_per_iteration
        self._seed = seed
        self._open: set[int] = set()

    @property
    def open(self) -> list[int]:
        """Episodes that were chosen and have not ended."""
        return sorted(self._open)

    def follow(self, episode_ids: Iterable[int]) -> None:
        """Goes on with what `open` gave."""
        self._open = set(episode_ids)

    def forget(self, episode_ids: Iterable[int]) -> None:
        """Gives up episodes whose last window is not trained."""
        self._open.difference_update(episode_ids)

    def record(self, iteration: int, batch: Sequence[Fragment], report: pa.Table) -> None:
        """Writes the windows of chosen episodes that an update trained, if there are any.

        Args:
            iteration: Number of the iteration.
            batch: Fragments of the update, without windows in hindsight.
            report: The learners' report of them; rows in any order.
        """
        if not self._most:
            return
        # A window that was sampled again after the loss of an env-runner: its rows of the report cannot be told apart.
        times = Counter((fragment.episode_id, fragment.window_index) for fragment in batch)
        clear = [fragment for fragment in batch if times[fragment.episode_id, fragment.window_index] == 1]
        first = sorted((fragment for fragment in clear if fragment.window_index == 0), key=self._place)
        self._open.update(fragment.episode_id for fragment in first[: self._most])
        chosen = [fragment for fragment in clear if fragment.episode_id in self._open]
        if not chosen:
            return
        self._open.difference_update(fragment.episode_id for fragment in chosen if fragment.finished)
        ids, indices = (report[name].to_pylist() for name in ("episode_id", "window_index"))
        rows = {key: row for row, key in enumerate(zip(ids, indices, strict=True))}
        windows = [_with_report(one, report, rows[one.episode_id, one.window_index]) for one in chosen]
        self._write(f"iteration_{iteration:06d}", windows)

    def record_heldout(self, updates: int, episodes: Sequence[Fragment]) -> None:
        """Writes the responses to the first held-out prompts, as many as an iteration records episodes.

        Args:
            updates: Updates before the evaluation.
            episodes: Finished fragments by prompt index.
        """
        # A prompt that could not be made has an episode without tokens.
        chosen = [one for one in episodes[: self._most] if len(one)]
        if chosen:
            windows = [recorded_window(one, values=None, advantages=None, boundary_value=None) for one in chosen]
            self._write(f"heldout_{updates:06d}", windows)

    def _write(self, name: str, windows: Sequence[RecordedWindow]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(table_from_windows(windows), self._folder / f"{name}.parquet", compression="zstd")

    def _place(self, fragment: Fragment) -> tuple[bytes, int, int]:
        prompt = fragment.context[: fragment.prompt_length].astype("<i4", copy=False).tobytes()
        digest = hashlib.blake2b(f"{self._seed}:".encode() + prompt, digest_size=8).digest()
        return digest, fragment.prompt_index, fragment.episode_id


def _with_report(fragment: Fragment, report: pa.Table, row: int) -> RecordedWindow:
    def numbers(name: str) -> np.ndarray | None:
        known = report[name][row]
        return known.values.to_numpy(zero_copy_only=False) if known.is_valid else None

    return recorded_window(
        fragment,
        values=numbers("values"),
        advantages=numbers("advantages"),
        boundary_value=report["boundary_value"][row].as_py(),
    )
