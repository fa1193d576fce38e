"""The count of processed positions for each trained token."""

from __future__ import annotations

import pytest

from tppo_rl.bench.window_price import window_price
from tppo_rl.bench.workloads import PROMPT


def test_the_price_of_windows_by_hand() -> None:
    (whole, *_) = window_price(window=12, response=12, slots=1, updates=2)
    # The last state predicts the last token, so that a response takes as many positions as prompt and response, but one.
    assert whole.median == pytest.approx((PROMPT + 11) / 12)


def test_contexts_are_processed_once_with_hindsight_too() -> None:
    plain, cached, again = window_price(window=8, response=120, slots=2)
    assert plain.median > 5
    assert cached.median < 1 + 2 * PROMPT / 120
    assert again.median < 1 + 2 * PROMPT / 120
