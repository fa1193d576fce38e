import math

import numpy as np
import pytest
from helpers import make_fragment

from tppo_rl.core.boundaries import Boundary, ClosedBoundary, window_differences
from tppo_rl.core.metric_table import METRICS
from tppo_rl.maths.value import difference_slope
from tppo_rl.observability.metrics import boundary_metrics, episode_metrics, heldout_metrics, learner_metrics


def test_names_are_unique_and_every_metric_is_defined() -> None:
    names = [metric.name for metric in METRICS]
    assert len(names) == len(set(names))
    assert all(metric.definition and metric.name.count("/") == 1 for metric in METRICS)


def test_what_the_learner_left_out_is_left_out() -> None:
    assert learner_metrics({"entropy": 0.5, "value_loss": math.nan, "unknown": 1.0}) == {"policy/entropy": 0.5}


def test_episodes_are_measured_whole() -> None:
    finished = make_fragment(
        context=[1, 2, 3, 4], prompt_length=2, tokens=[5, 6], versions=[3, 5], rewards=[0.0, 1.0], terminated=True,
        correct=True, window_index=1,
    )  # fmt: skip
    capped = make_fragment(tokens=[7], truncated=True, correct=False)
    metrics = episode_metrics([finished, make_fragment(), capped])
    assert metrics["rollout/finished_episodes"] == 2
    assert metrics["rollout/accuracy"] == 0.5
    assert metrics["rollout/response_length_mean"] == (4 + 1) / 2
    assert metrics["rollout/response_length_max"] == 4
    assert metrics["rollout/truncated_fraction"] == 0.5
    assert metrics["rollout/windows_per_response"] == 1.5
    assert metrics["rollout/versions_per_response"] == (3 + 1) / 2
    assert episode_metrics([make_fragment()]) == {"rollout/finished_episodes": 0.0}


def test_boundary_errors_and_explained_variance() -> None:
    closed = [
        ClosedBoundary(
            0, Boundary(held=0.25, bootstrap=0.5, window_mean=0.0), return_after=1.0, position=4, episode_id=0
        ),
        ClosedBoundary(
            1, Boundary(held=0.25, bootstrap=0.0, window_mean=0.0), return_after=0.0, position=8, episode_id=0
        ),
    ]
    metrics = boundary_metrics(closed)
    assert metrics["critic/boundary_error_held"] == pytest.approx(0.5)
    assert metrics["critic/boundary_error_bootstrap"] == pytest.approx(0.25)
    assert metrics["critic/explained_variance_unfinished"] == pytest.approx(0.0)
    assert boundary_metrics([]) == {}
    assert "critic/explained_variance_unfinished" not in boundary_metrics(closed[:1])


def test_differences_of_values_are_those_of_windows_that_follow_each_other() -> None:
    def closed(window: int, value: float, following: float) -> ClosedBoundary:
        return ClosedBoundary(window, Boundary(0.0, value, 0.0), return_after=following, position=window, episode_id=0)

    rng = np.random.default_rng(0)
    walks = rng.normal(size=(20, 3)).cumsum(axis=1)
    boundaries = [closed(window, walk[window], 2.0 * walk[2]) for walk in walks for window in range(3)]
    first, second = walks[:, :2].ravel(), walks[:, 1:].ravel()
    expected = difference_slope(first, second, np.repeat(2.0 * walks[:, 2], 2))
    assert expected is not None
    assert boundary_metrics(boundaries)["critic/difference_slope"] == pytest.approx(expected)
    assert "critic/difference_slope" not in boundary_metrics(boundaries[::3])


def test_windows_of_two_episodes_are_no_pair() -> None:
    """After a resume an episode's first boundary may be the index after another one's last."""
    values = Boundary(held=0.0, bootstrap=0.5, window_mean=0.0)
    one, other, next_one = (
        ClosedBoundary(window, values, return_after=1.0, position=8, episode_id=episode)
        for window, episode in [(1, 4), (2, 5), (3, 5)]
    )
    found = window_differences([one, other, next_one])
    assert (len(found.before), found.num_episodes) == (1, 1)


def test_heldout_metrics_name_both_ways_of_sampling() -> None:
    values = {"accuracy": 0.5, "response_length_mean": 9.0}
    assert heldout_metrics({"sampled": values, "greedy": values}).keys() == {
        "heldout/accuracy_sampled",
        "heldout/accuracy_greedy",
        "heldout/response_length_sampled",
        "heldout/response_length_greedy",
    }
