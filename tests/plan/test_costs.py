from __future__ import annotations

import pytest

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.costs import AffineEngineCost, MeasuredLearnerCost, PassCost, learner_of_speed
from tppo_rl.plan.windows import LearnerWork, PassWork

ENGINE = AffineEngineCost(1e-3, 1e-4, 1e-7, 2e-5, 0.02)
LEARNER = MeasuredLearnerCost(
    PassCost(0.01, 1e-5, 2e-5, 1e-8), PassCost(0.02, 2e-5, 6e-5, 3e-8), PassCost(0.02, 0.0, 6e-5, 0.0), PassCost()
)


def test_an_update_is_the_sum_of_its_passes() -> None:
    work = LearnerWork(PassWork(2, 100, 5000), PassWork(2, 98, 4802), PassWork(1, 60, 3600))
    values = 0.01 + 2e-5 + 2e-3 + 5e-5
    policy = 0.02 + 4e-5 + 98 * 6e-5 + 4802 * 3e-8
    critic = 0.02 + 60 * 6e-5
    assert LEARNER.seconds(work, 1.0) == pytest.approx(values + policy + critic)
    assert LEARNER.seconds(work, 1.0) - LEARNER.seconds(work, 0.0) == pytest.approx(0.05)


def test_a_speed_is_of_forward_and_backward_passes() -> None:
    learner = learner_of_speed(1000.0)
    assert learner.policy.per_position == pytest.approx(1e-3)
    assert learner.values.per_position == pytest.approx(1e-3 / 3)
    with pytest.raises(OptionError, match="learner_speed=0"):
        learner_of_speed(0.0)
