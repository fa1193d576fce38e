from __future__ import annotations

from dataclasses import astuple

import pytest
from simulated_runs import simulated_run

from tppo_rl.plan.lengths import ResponseLengths, fixed, lognormal, uniform
from tppo_rl.plan.windows import Mode, work_per_token


def test_fixed_lengths_in_fixed_windows_by_hand() -> None:
    # 10 tokens after a prompt of 3, windows of 4: fragments that end at 7, 11 and 13 positions.
    work = work_per_token(fixed(10), "async", 4, 3.0).times(10)
    assert astuple(work.values) == pytest.approx((3, 7 + 11 + 13, 7**2 + 11**2 + 13**2))
    assert astuple(work.policy) == pytest.approx((3, 6 + 10 + 12, 6**2 + 10**2 + 12**2))
    assert astuple(work.critic) == pytest.approx((1, 12, 12**2))
    whole = work_per_token(fixed(10), "ppo", None, 3.0).times(10)
    assert astuple(whole.values) == pytest.approx((1, 13, 13**2))
    assert work_per_token(fixed(10), "async", 10, 3.0).times(10) == whole
    # Windows of 5 always cut in the middle; windows of 4 wander, by steps of 2: 2, 4, 6 and 8 are cut half of the times.
    assert work_per_token(fixed(10), "sync", 5, 3.0).times(10).values.positions == pytest.approx(8 + 13)
    assert work_per_token(fixed(10), "sync", 4, 3.0).times(10).values.positions == pytest.approx(
        (5 + 7 + 9 + 11) / 2 + 13
    )


def test_cached_contexts_are_read_once_by_hand() -> None:
    # The same response: 13 positions, of which the last of each unfinished fragment is read again for its value.
    work = work_per_token(fixed(10), "async", 4, 3.0, cached_contexts=True).times(10)
    assert astuple(work.values) == pytest.approx((3, 13 + 2, 13**2))
    assert astuple(work.policy) == pytest.approx((3, 12, 12**2))
    assert astuple(work.critic) == pytest.approx((1, 12, 12**2))
    assert work_per_token(fixed(10), "ppo", None, 3.0, cached_contexts=True) == work_per_token(
        fixed(10), "ppo", None, 3.0
    )


DISTRIBUTIONS = {
    "long-tailed": lognormal(40.0, 1.1, 320),
    "uniform": uniform(5, 60),
    "fixed": fixed(24),
}


@pytest.mark.parametrize(("mode", "window"), [("async", 16), ("async", 48), ("sync", 16), ("sync", 36), ("ppo", None)])
@pytest.mark.parametrize("lengths", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
def test_predicted_work_is_that_of_the_real_sampler(lengths: ResponseLengths, mode: Mode, window: int | None) -> None:
    run = simulated_run(lengths, mode, window)
    expected = work_per_token(lengths, mode, window, run.prompt_length)
    for name in ("values", "policy", "critic"):
        own, measured = getattr(expected, name), getattr(run.work_per_token, name)
        assert own.sequences == pytest.approx(measured.sequences, rel=0.04), name
        assert own.positions == pytest.approx(measured.positions, rel=0.04), name
        assert own.pairs == pytest.approx(measured.pairs, rel=0.1), name


def test_longer_windows_bring_less_context() -> None:
    lengths = lognormal(48.0, 1.1, 800)
    for mode in ("async", "sync"):
        processed = [work_per_token(lengths, mode, window, 16.0).policy.positions for window in (8, 32, 128, 800)]  # type: ignore[arg-type]
        assert processed == sorted(processed, reverse=True)
    whole = work_per_token(lengths, "ppo", None, 16.0)
    assert work_per_token(lengths, "async", 800, 16.0) == whole
    assert work_per_token(lengths, "sync", 800, 16.0).policy.positions > whole.policy.positions
