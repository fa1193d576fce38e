"""Whole episodes of a run in its files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from helpers import make_fragment

from tppo_rl.config.options import Options
from tppo_rl.core.fragments import Fragment
from tppo_rl.core.recorded_windows import RecordedWindow, windows_from_table
from tppo_rl.learner.update import FRAGMENT_REPORT_SCHEMA
from tppo_rl.observability.episode_log import EpisodeLog


def report_of(fragments: Sequence[Fragment], *, critic: bool = True) -> pa.Table:
    """Values are a hundredth of the token, advantages a tenth, boundary values those of the last token."""
    rows = [
        {
            "episode_id": one.episode_id,
            "window_index": one.window_index,
            "trained_tokens": len(one),
            "boundary_value": one.tokens[-1] / 100 if critic else None,
            "values": one.tokens[one.sampled == 1] / 100 if critic else None,
            "advantages": one.tokens[one.sampled == 1] / 10,
        }
        for one in fragments
    ]
    return pa.Table.from_pylist(rows, schema=FRAGMENT_REPORT_SCHEMA)


def window(episode: int, index: int = 0, *, prompt: int = 1, ends: bool = False, **fields: Any) -> Fragment:
    """Two tokens; earlier windows have two each."""
    tokens = [10 * index + 11, 10 * index + 12]
    context = [prompt, 2, *(0 for _ in range(2 * index))]
    given = {
        "episode_id": episode,
        "prompt_index": prompt,
        "window_index": index,
        "prompt_length": 2,
        "terminated": ends,
    }
    return make_fragment(tokens=tokens, context=context, **(given | fields))


def read(folder: Path) -> dict[int, list[RecordedWindow]]:
    files = sorted((folder / "episodes").glob("*.parquet"))
    return {int(file.stem.partition("_")[2]): windows_from_table(pq.read_table(file)) for file in files}


def keys(windows: Sequence[RecordedWindow]) -> list[tuple[int, int]]:
    return sorted((one.fragment.episode_id, one.fragment.window_index) for one in windows)


def test_all_windows_of_chosen_episodes_are_kept_with_their_values(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, episodes_per_iteration=1, seed=0)
    later = [window(7, 1, sampled=[0, 1]), window(8, 1, ends=True), window(9, prompt=3, ends=True)]
    for iteration, batch in enumerate([[window(7), window(8)], later, [window(7, 2, ends=True)], [window(8, 2)]], 1):
        log.record(iteration, batch, report_of(batch[::-1]))
    found = read(tmp_path)
    assert {iteration: keys(windows) for iteration, windows in found.items()} == {
        1: [(7, 0)],
        2: [(7, 1), (9, 0)],
        3: [(7, 2)],
    }
    second = next(one for one in found[2] if one.fragment.episode_id == 7)
    assert (second.start, second.fragment.context.tolist()) == (2, [])
    np.testing.assert_allclose(second.values, [np.nan, 0.22], rtol=1e-6)
    np.testing.assert_allclose(second.advantages, [np.nan, 2.2], rtol=1e-6)
    assert second.boundary_value == pytest.approx(0.22)
    assert found[1][0].fragment.context.tolist() == [1, 2]
    assert log.open == []


def test_the_same_prompts_are_chosen_again_and_answers_to_one_together(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, episodes_per_iteration=3, seed=4)
    random = np.random.default_rng(0)
    chosen: list[set[int]] = []
    for iteration in range(1, 6):
        batch = [
            window(10 * iteration + answer, prompt=prompt, ends=True) for answer in range(3) for prompt in range(20)
        ]
        batch = [make_numbered(batch[place], 100 * iteration + place) for place in random.permutation(len(batch))]
        log.record(iteration, batch, report_of(batch))
        windows = read(tmp_path)[iteration]
        assert len(windows) == 3
        chosen.append({int(one.fragment.context[0]) for one in windows})
    assert len(chosen[0]) == 1
    assert all(prompts == chosen[0] for prompts in chosen)
    other = EpisodeLog(tmp_path / "other", episodes_per_iteration=10, seed=5)
    batch = [window(number, prompt=number) for number in range(20)]
    other.record(1, batch, report_of(batch))
    first = EpisodeLog(tmp_path / "first", episodes_per_iteration=10, seed=4)
    first.record(1, batch, report_of(batch))
    assert keys(read(tmp_path / "other")[1]) != keys(read(tmp_path / "first")[1]), "the seed draws the order"


def make_numbered(fragment: Fragment, number: int) -> Fragment:
    return window(number, prompt=int(fragment.context[0]), ends=True)


def test_without_a_critic_there_are_advantages_alone(tmp_path: Path) -> None:
    batch = [window(7, ends=True)]
    EpisodeLog(tmp_path, episodes_per_iteration=8, seed=0).record(1, batch, report_of(batch, critic=False))
    (found,) = read(tmp_path)[1]
    assert (found.values, found.boundary_value) == (None, None)
    np.testing.assert_allclose(found.advantages, [1.1, 1.2], rtol=1e-6)


def test_what_cannot_be_told_apart_and_what_is_given_up_is_left_out(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, episodes_per_iteration=8, seed=0)
    batch = [window(7), window(7), window(8), window(9)]
    log.record(1, batch, report_of(batch))
    assert keys(read(tmp_path)[1]) == [(8, 0), (9, 0)]
    log.forget([9])
    resumed = EpisodeLog(tmp_path, episodes_per_iteration=8, seed=0)
    resumed.follow(log.open)
    batch = [window(number, 1) for number in (7, 8, 9)]
    resumed.record(2, batch, report_of(batch))
    assert keys(read(tmp_path)[2]) == [(8, 1)]


def test_none_are_kept_on_request(tmp_path: Path) -> None:
    EpisodeLog(tmp_path, episodes_per_iteration=0, seed=0).record(1, [window(7)], report_of([window(7)]))
    assert not (tmp_path / "episodes").exists()


def test_a_token_takes_the_bytes_that_the_option_says(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    batch = []
    for number in range(8):
        tokens = random.integers(0, 49_000, 1000)
        log_probs = -random.exponential(0.5, 1000).astype(np.float32)
        batch.append(make_fragment(episode_id=number, tokens=tokens, behavior_log_probs=log_probs, terminated=True))
    table = report_of(batch).set_column(
        6, "values", pa.array([random.normal(size=1000) for _ in batch], pa.list_(pa.float32()))
    )
    advantages = pa.array([random.normal(size=1000) for _ in batch], pa.list_(pa.float32()))
    EpisodeLog(tmp_path, episodes_per_iteration=8, seed=0).record(
        1, batch, table.set_column(7, "advantages", advantages)
    )
    (file,) = (tmp_path / "episodes").glob("*")
    per_token = file.stat().st_size / 8000
    assert per_token == pytest.approx(20, abs=5), per_token
    assert "About 20 bytes a token" in (
        Options.model_fields["run"].annotation.model_fields["record_episodes"].description or ""
    )


def test_the_same_heldout_prompts_are_kept_at_every_evaluation(tmp_path: Path) -> None:
    log = EpisodeLog(tmp_path, episodes_per_iteration=2, seed=0)
    for updates in (0, 5):
        nothing = make_fragment(tokens=[], episode_id=1, terminated=True)
        log.record_heldout(updates, [window(0, prompt=0, ends=True), nothing, window(2, ends=True)])
    for name in ("heldout_000000", "heldout_000005"):
        kept = windows_from_table(pq.read_table(tmp_path / "episodes" / f"{name}.parquet"))
        assert keys(kept) == [(0, 0)]
        assert (kept[0].values, kept[0].advantages) == (None, None)
    EpisodeLog(tmp_path / "none", episodes_per_iteration=0, seed=0).record_heldout(0, [window(0, ends=True)])
    assert not (tmp_path / "none").exists()
