from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest

from tppo_rl.plan.lengths import fixed, lognormal
from tppo_rl.plan.pipeline import Pipeline, simulate

PIPELINE = Pipeline(
    lengths=lognormal(40.0, 1.0, 320),
    window=32,
    slots=32,
    batch_tokens=2048,
    max_staleness=2,
    engine_steps=32,
    step_seconds=3.2e-3,
    weight_seconds=0.0,
    update_seconds=0.0,
    token_seconds=1e-4,
)
"""Both sides take 100 microseconds a token."""


def test_the_slower_side_sets_the_pace() -> None:
    slow_learner = simulate(replace(PIPELINE, token_seconds=4e-4))
    assert slow_learner.seconds_per_token == pytest.approx(4e-4, rel=0.01)
    slow_engine = simulate(replace(PIPELINE, step_seconds=4 * 3.2e-3))
    assert slow_engine.seconds_per_token == pytest.approx(4e-4, rel=0.03)
    assert slow_engine.staleness_mean < slow_learner.staleness_mean
    assert slow_engine.tokens_per_update == pytest.approx(2048, rel=0.02)


@pytest.mark.parametrize("max_staleness", [1, 2, 4])
@pytest.mark.parametrize("token_seconds", [2e-5, 1e-4, 5e-4])
def test_staleness_keeps_its_bound_and_time_cannot_be_less_than_either_side(
    max_staleness: int, token_seconds: float
) -> None:
    result = simulate(replace(PIPELINE, max_staleness=max_staleness, token_seconds=token_seconds, window=64))
    assert 0 <= result.staleness_mean <= result.staleness_max <= max_staleness
    assert result.seconds_per_token >= max(1e-4, token_seconds) * 0.97
    assert result.seconds_per_token <= (1e-4 + token_seconds) * 1.05


def test_more_staleness_never_slows_a_run_down() -> None:
    seconds = [simulate(replace(PIPELINE, max_staleness=bound)).seconds_per_token for bound in (1, 2, 4, 8)]
    assert all(later <= before * 1.02 for before, later in pairwise(seconds))
    assert seconds[0] > 1.2 * seconds[-1]


def test_windows_longer_than_staleness_allows_hold_updates_up() -> None:
    # A batch is 64 steps of all slots; responses of 1024 tokens in one window outlast several.
    long = replace(PIPELINE, lengths=fixed(1024), window=1024)
    assert simulate(long).seconds_per_token > 1.3 * simulate(replace(long, window=32)).seconds_per_token
    assert simulate(long).tokens_per_update > 2048


def test_new_weights_cost_the_engine_their_time() -> None:
    slow = replace(PIPELINE, step_seconds=4 * 3.2e-3)
    waiting = simulate(replace(slow, weight_seconds=0.2)).seconds_per_token - simulate(slow).seconds_per_token
    assert waiting == pytest.approx(0.2 / 2048, rel=0.1)


def test_many_slots_are_stood_for_by_fewer() -> None:
    many = simulate(replace(PIPELINE, slots=320, batch_tokens=20480, token_seconds=4e-5))
    few = simulate(replace(PIPELINE, slots=128, batch_tokens=8192, token_seconds=1e-4))
    assert many.seconds_per_token == pytest.approx(few.seconds_per_token / 2.5)
    assert many.tokens_per_update == pytest.approx(2.5 * few.tokens_per_update)
    assert many.staleness_mean == few.staleness_mean


def test_a_simulation_repeats_itself() -> None:
    assert simulate(PIPELINE) == simulate(PIPELINE)
