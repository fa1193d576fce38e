from __future__ import annotations

import pytest

from tppo_rl.rollout.failure_watch import FailureWatch, RewardsFailed
from tppo_rl.rollout.responses import REWARD_FAILED, TRUNCATED, Failure, Scores


def failed(count: int, left_out: str | None = REWARD_FAILED) -> Scores:
    failures = [Failure("judge", "timeout", "TimeoutError: deadline")] * count
    reasons = {} if left_out is None else dict.fromkeys(range(count), left_out)
    return Scores(failures=failures, failed_responses=count, left_out=reasons)


def test_a_run_goes_on_with_some_failures() -> None:
    watch = FailureWatch(0.5)
    for _ in range(1000):
        watch.add(2, 2, failed(1))


def test_a_run_ends_with_one_message_when_too_many_fail() -> None:
    watch = FailureWatch(0.5)
    for _ in range(200):
        watch.add(1, 1, Scores())
    for _ in range(128):
        watch.add(1, 1, failed(1, None))
    with pytest.raises(
        RewardsFailed, match=r"^max_failed_fraction=0.5: 129 of the last 256 .*judge \(timeout\): Timeout"
    ):
        watch.add(1, 1, failed(1, None))


def test_a_few_responses_prove_nothing() -> None:
    watch = FailureWatch(0.5)
    watch.add(63, 1, failed(63))
    with pytest.raises(RewardsFailed, match="64 of the last 64"):
        watch.add(1, 1, failed(1))


def test_a_run_in_which_all_is_left_out_does_not_go_on_for_ever() -> None:
    watch = FailureWatch(1.0, patience=300)
    masked = Scores(left_out=dict.fromkeys(range(100), TRUNCATED))
    watch.add(100, 0, masked)
    watch.add(100, 0, masked)
    watch.add(100, 1, masked)
    watch.add(100, 0, masked)
    watch.add(100, 0, masked)
    with pytest.raises(RewardsFailed, match=r"300 responses .*truncated_responses='mask'.*max_response_length"):
        watch.add(100, 0, masked)
