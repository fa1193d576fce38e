from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.costs import AffineEngineCost, Costs, forward_and_backward
from tppo_rl.plan.lengths import fixed, lognormal
from tppo_rl.plan.predict import Prediction, Workload, default_windows, predict, recommend
from tppo_rl.plan.roofline import roofline_costs, shape_of_model

SHAPE = shape_of_model("tppo_rl/arithmetic-chain")
COSTS = Costs(AffineEngineCost(2e-3, 1e-4, weight_update=0.01), forward_and_backward(1e-5, 0.0), "a test")
LONG_TAILED = Workload(lognormal(48.0, 1.1, 800), slots=32, batch_tokens=2048)


def rows(workload: Workload, windows: list[int], costs: Costs = COSTS) -> dict[tuple[str, int | None], Prediction]:
    return {(one.mode, one.window): one for one in predict(workload, costs, SHAPE, windows)}


def test_fixed_lengths_by_hand() -> None:
    workload = Workload(fixed(32), slots=16, prompt_length=8.0, batch_tokens=512)
    found = rows(workload, [16, 32])
    generation_s = (2e-3 + 16e-4) / 16
    whole = found["ppo", None]
    assert whole.occupancy == 1.0
    assert whole.tokens_per_update == 16 * 32
    assert whole.generation_s == pytest.approx(generation_s + 0.01 / 512)
    # Values of 40 positions, policy and critic of 39, three times the work each.
    assert whole.learner_s == pytest.approx(1e-5 * (40 + 3 * 39 + 3 * 39) / 32)
    assert whole.seconds_per_token == pytest.approx(whole.generation_s + whole.learner_s)
    assert whole.processed_per_trained_token == pytest.approx(39 / 32)
    half = found["sync", 16]
    assert half.processed_per_trained_token == pytest.approx((23 + 39) / 32)
    assert half.learner_s == pytest.approx(1e-5 * (24 + 40 + 3 * (23 + 39) + 3 * 39) / 32)
    assert half.generation_s == pytest.approx(generation_s + 0.01 / 256)
    assert found["sync", 32].learner_s == pytest.approx(whole.learner_s)
    assert found["async", 16].learner_s == pytest.approx(half.learner_s)
    assert found["async", 16].seconds_per_token == pytest.approx(found["async", 16].generation_s, rel=0.03)


def test_modes_and_windows_compare_as_they_should() -> None:
    found = rows(LONG_TAILED, default_windows(800))
    windows = default_windows(800)
    assert windows == [800, 400, 200, 100, 50, 25, 12]
    for mode in ("async", "sync"):
        learner = [found[mode, window].learner_s for window in windows]
        assert learner == sorted(learner)
        assert all(found[mode, window].occupancy == 1.0 for window in windows)
    whole = found["ppo", None]
    assert whole.occupancy < 0.25
    assert whole.generation_s > 2 * found["sync", 50].generation_s
    assert whole.intensity < found["async", 50].intensity
    assert all(found["sync", window].staleness_max == 0 for window in windows)
    assert all(1 <= found["async", window].staleness_max <= 2 for window in windows)


def test_one_device_makes_everything_take_turns() -> None:
    alone = rows(replace(LONG_TAILED, devices=1), [50])["async", 50]
    assert (alone.env_runners, alone.learners) == (1, 1)
    assert alone.seconds_per_token == pytest.approx(alone.generation_s + alone.learner_s, rel=0.05)
    apart = rows(LONG_TAILED, [50])["async", 50]
    assert apart.seconds_per_token < alone.seconds_per_token


def test_devices_go_to_the_slower_side() -> None:
    eight = replace(LONG_TAILED, devices=8, batch_tokens=8192)
    slow = Costs(COSTS.engine, forward_and_backward(4e-5, 0.0), "a test")
    slow_learner = rows(eight, [50], slow)["async", 50]
    assert slow_learner.env_runners + slow_learner.learners == 8
    assert slow_learner.learners > slow_learner.env_runners
    fast = Costs(COSTS.engine, forward_and_backward(5e-7, 0.0), "a test")
    slow_engine = rows(eight, [50], fast)["async", 50]
    assert slow_engine.env_runners > slow_engine.learners
    colocated = rows(replace(eight, colocated=True), [50], slow)
    assert (colocated["sync", 50].env_runners, colocated["sync", 50].learners) == (8, 8)
    assert colocated["sync", 50].seconds_per_token < rows(eight, [50], slow)["sync", 50].seconds_per_token
    assert colocated["async", 50] == slow_learner


def test_epochs_cost_the_learner_theirs() -> None:
    once = rows(LONG_TAILED, [50])["sync", 50]
    twice = rows(replace(LONG_TAILED, critic_epochs=2), [50])["sync", 50]
    both = rows(replace(LONG_TAILED, critic_epochs=2, policy_epochs=2), [50])["sync", 50]
    assert once.learner_s < twice.learner_s < both.learner_s < 2 * once.learner_s
    assert once.processed_per_trained_token == both.processed_per_trained_token


def test_of_nearly_equal_windows_the_longest_is_recommended() -> None:
    predictions = predict(LONG_TAILED, COSTS, SHAPE, [100, 50])
    row = next(one for one in predictions if one.mode == "async")
    made = [
        replace(row, window=window, seconds_per_token=seconds)
        for window, seconds in ((400, 1.5), (200, 1.01), (100, 1.0), (50, 1.3))
    ]
    assert recommend(made).window == 200
    assert recommend([*made, replace(row, mode="ppo", window=None, seconds_per_token=0.5)]).mode == "ppo"


@pytest.mark.parametrize(
    "change", [{"slots": 0}, {"devices": 0}, {"max_staleness": 0}, {"batch_tokens": -1}, {"prompt_length": -1.0}]
)
def test_bad_values_are_named(change: dict[str, Any]) -> None:
    ((key, value),) = change.items()
    with pytest.raises(OptionError, match=f"{key}={value:g}"):
        replace(LONG_TAILED, **change)
    with pytest.raises(OptionError, match="windows=0"):
        predict(LONG_TAILED, COSTS, SHAPE, [0])


def test_slots_that_do_not_fit_into_memory_are_refused() -> None:
    costs, shape = roofline_costs("h100", "qwen2.5-7b"), shape_of_model("qwen2.5-7b")
    many = Workload(lognormal(4000.0, 0.5, 16000), slots=4096, prompt_length=200.0, batch_tokens=2**22)
    with pytest.raises(OptionError, match=r"slots=4096: .* give at most (\d+) slots") as error:
        predict(many, costs, shape, [4000])
    most = int(re.search(r"at most (\d+)", str(error.value)).group(1))  # type: ignore[union-attr]
    assert predict(replace(many, slots=most), costs, shape, [4000])
    with pytest.raises(OptionError):
        predict(replace(many, slots=most + 1), costs, shape, [4000])


def test_a_token_takes_no_less_time_than_its_slower_side() -> None:
    """Also where updates are many times larger than was asked, because long windows have to close in time."""
    small = replace(LONG_TAILED, batch_tokens=128, max_staleness=8)
    found = rows(small, [800, 200, 50])
    for window in (800, 200, 50):
        row = found["async", window]
        assert row.seconds_per_token >= 0.95 * max(row.generation_s, row.learner_s)
    assert found["async", 800].tokens_per_update > 4 * 128
    assert found["async", 800].staleness_law is None
    assert found["async", 50].staleness_law is not None
