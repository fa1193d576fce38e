from __future__ import annotations

import re
from typing import Any

import pytest

from tppo_rl.config.options import OPTIONS
from tppo_rl.core.metric_table import METRICS
from tppo_rl.observability.alarms import Alarms

GOOD = {
    "critic/finished_episodes": 40.0,
    "critic/loss": 0.1,
    "critic/explained_variance": 0.4,
    "critic/boundary_error_held": 0.2,
    "critic/difference_slope": 0.4,
    "policy/unfinished_fraction": 0.6,
    "rollout/slot_occupancy": 1.0,
    "rollout/env_runner_idle_fraction": 0.05,
    "time/waiting_for_fragments": 0.1,
    "time/iteration": 1.0,
}
SIGNS = {
    "few_finished_episodes": {"critic/finished_episodes": 2.0},
    "explained_variance": {"critic/explained_variance": -0.5},
    "boundary_error": {"critic/boundary_error_held": 0.6},
    "wrong_differences": {"critic/difference_slope": -0.4},
    "slot_occupancy": {"rollout/slot_occupancy": 0.6},
    "learner_idle": {"time/waiting_for_fragments": 0.6},
    "env_runner_idle": {"rollout/env_runner_idle_fraction": 0.6},
}


def watch(alarms: Alarms, changes: dict[str, float], updates: int) -> list[str]:
    for _ in range(updates):
        seen = alarms.watch(GOOD | changes)
    return [alarm.name for alarm in seen]


@pytest.mark.parametrize(("name", "changes"), SIGNS.items())
def test_each_sign_raises_its_own_alarm_and_a_recovery_ends_it(name: str, changes: dict[str, float]) -> None:
    alarms = Alarms()
    assert watch(alarms, {}, 20) == []
    assert watch(alarms, changes, 1) == []
    assert watch(alarms, changes, 20) == [name]
    assert watch(alarms, {}, 20) == []


@pytest.mark.parametrize(("name", "changes"), SIGNS.items())
def test_the_message_names_settings_that_exist(name: str, changes: dict[str, float]) -> None:
    alarms = Alarms()
    watch(alarms, {}, 20)
    watch(alarms, changes, 20)
    (alarm,) = alarms.watch(GOOD | changes)
    settings = set(re.findall(r"[a-z]+(?:_[a-z]+)+", alarm.message)) - {"kv_cache_gib", "max_num_seqs"}
    assert settings
    assert settings <= set(OPTIONS)


@pytest.mark.parametrize("changes", [{"policy/unfinished_fraction": 0.0}, {"policy/unfinished_scale": 0.0}])
def test_wrong_differences_are_no_sign_where_nothing_is_trained_on_them(changes: dict[str, float]) -> None:
    alarms = Alarms()
    assert watch(alarms, {"critic/difference_slope": -0.4}, 20) == ["wrong_differences"]
    assert watch(Alarms(), {"critic/difference_slope": -0.4} | changes, 40) == []
    assert watch(Alarms(), {"critic/difference_slope": 0.0}, 40) == []


def test_no_alarm_before_averages_mean_anything() -> None:
    every: dict[str, Any] = {key: value for changes in SIGNS.values() for key, value in changes.items()}
    alarms = Alarms(patience=5)
    assert [len(alarms.watch(GOOD | every)) > 0 for _ in range(6)] == [False] * 4 + [True] * 2


def test_what_cannot_be_otherwise_raises_no_alarm() -> None:
    waiting = {
        "rollout/slot_occupancy": 0.2,
        "rollout/env_runner_idle_fraction": 0.6,
        "time/waiting_for_fragments": 0.6,
    }
    assert watch(Alarms(asynchronous=False, refills=False), waiting, 20) == []


def test_absent_metrics_and_nan_are_passed_over() -> None:
    alarms = Alarms(patience=1)
    assert alarms.watch({}) == []
    assert alarms.watch({"critic/explained_variance": float("nan")}) == []
    assert watch(alarms, {}, 3) == []


def test_small_boundary_errors_may_grow() -> None:
    alarms = Alarms()
    assert watch(alarms, {"critic/boundary_error_held": 0.01}, 20) == []
    assert watch(alarms, {"critic/boundary_error_held": 0.04}, 20) == []


def test_every_alarm_is_a_metric() -> None:
    assert {f"alarm/{name}" for name in Alarms().names()} <= {metric.name for metric in METRICS}
