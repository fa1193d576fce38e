from __future__ import annotations

import numpy as np

from tppo_rl.bench.advantages import LONGEST, WINDOW, advantages_figures, ragged_rows

NAMES = {
    "egae_tokens_per_second",
    "egae_speedup_vs_python_loop",
    "egae_difference_from_python_loop",
    "egae_speedup_vs_rllib",
    "egae_difference_from_rllib",
}


def test_names_and_agreement() -> None:
    figures = {figure.figure: figure for figure in advantages_figures(tokens=5000, repeats=2, rllib=True)}
    names = {name + layout for name in NAMES for layout in ("", ", whole responses")}
    assert set(figures) == names
    assert all(figure.median < 1e-4 for name, figure in figures.items() if "difference" in name)
    assert figures["egae_tokens_per_second"].repeats == 2
    without = advantages_figures(tokens=5000, repeats=1, rllib=False)
    assert {figure.figure for figure in without} == {name for name in names if "rllib" not in name}


def test_responses_are_long_tailed_and_hold_the_tokens_asked_for() -> None:
    rows = ragged_rows(200_000)
    lengths = rows.lengths.numpy()
    assert lengths.sum() == 200_000
    assert lengths.min() >= 1
    assert LONGEST / 2 < lengths.max() <= LONGEST
    assert 100 < lengths.mean() < 140
    assert np.array_equal(rows.lengths, ragged_rows(200_000).lengths)
    assert not rows.values[~rows.mask].any()


def test_windows_hold_the_same_tokens() -> None:
    whole, windows = ragged_rows(20_000), ragged_rows(20_000, WINDOW)
    assert windows.values.shape[1] == WINDOW
    assert np.array_equal(whole.values[whole.mask], windows.values[windows.mask])
