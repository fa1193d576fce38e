"""Estimates against a process whose true values are known, numbers worked by hand, and invariances."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tppo_rl.maths.value_quality import (
    States,
    agreement,
    agreement_of_differences,
    auroc,
    calibration,
    ceiling,
    explained_by_true_values,
    explained_of_returns,
    explained_of_true_values,
    mean_error,
    neighbors,
    root_mean_square_error,
)

UP, TOP, BOTTOM = 0.55, 6, -5
"""A walk from 0: it goes up with probability UP, and ends at TOP with return 1 or at BOTTOM with return 0."""
PLACES = np.arange(BOTTOM + 1, TOP)


def true_value(place: np.ndarray) -> np.ndarray:
    """Probability of TOP before BOTTOM (gambler's ruin)."""
    ratio = (1 - UP) / UP
    return (1 - ratio ** (place - BOTTOM)) / (1 - ratio ** (TOP - BOTTOM))


def visits() -> np.ndarray:
    """Expected number of visits of each place: the row of the fundamental matrix that belongs to 0."""
    steps = np.diag(np.full(len(PLACES) - 1, UP), 1) + np.diag(np.full(len(PLACES) - 1, 1 - UP), -1)
    return np.linalg.inv(np.eye(len(PLACES)) - steps)[-BOTTOM - 1]


def variance(values: np.ndarray, weights: np.ndarray) -> float:
    mean = np.average(values, weights=weights)
    return float(np.average((values - mean) ** 2, weights=weights))


TRUE_CEILING = variance(true_value(PLACES), visits()) / (
    (mean := float(np.average(true_value(PLACES), weights=visits()))) * (1 - mean)
)


def walks(rng: np.random.Generator, number: int, pairs: int, prefixes: int = 4) -> tuple[States, np.ndarray]:
    """States as the laboratory samples them, and their places. A half has `pairs` continuations."""
    rows: dict[str, list[float]] = {field: [] for field in States.__dataclass_fields__}
    places = []
    for response in range(number):
        path = [0]
        while BOTTOM < path[-1] < TOP:
            path.append(path[-1] + (1 if rng.random() < UP else -1))
        length = len(path) - 1
        edges = np.linspace(0, length, min(prefixes, length) + 1).astype(int)
        for low, high in pairwise(edges):
            position = int(rng.integers(low, high))
            chance = float(true_value(np.array(path[position])))
            places.append(path[position])
            drawn = {
                "returns": float(path[-1] == TOP),
                "first": rng.binomial(pairs, chance) / pairs,
                "second": rng.binomial(pairs, chance) / pairs,
                "weights": float(high - low),
                "clusters": response,
                "responses": response,
                "positions": position,
                "lengths": length,
            }
            for name, value in drawn.items():
                rows[name].append(value)
    return States(**{name: np.array(values) for name, values in rows.items()}), np.array(places)


def wrong_critic(places: np.ndarray) -> np.ndarray:
    return 0.2 + 0.5 * true_value(places) + 0.1 * np.sin(3.0 * places)


@pytest.fixture(scope="module")
def sampled() -> tuple[States, np.ndarray]:
    return walks(np.random.default_rng(0), 1500, 2)


def within(found: object, truth: float, errors: float = 3.0) -> None:
    assert abs(found.value - truth) <= errors * found.error, (found, truth)  # type: ignore[attr-defined]
    assert found.error < 0.1  # type: ignore[attr-defined]


def test_the_ceiling_is_that_of_the_process(sampled: tuple[States, np.ndarray]) -> None:
    states, _ = sampled
    within(ceiling(states), TRUE_CEILING)
    within(explained_by_true_values(states), TRUE_CEILING)
    # Without the correction, two continuations in a half would make it far too high.
    assert variance(states.first, states.weights) / variance(states.returns, states.weights) > TRUE_CEILING + 0.1


def test_a_perfect_critic_reaches_the_ceiling(sampled: tuple[States, np.ndarray]) -> None:
    states, places = sampled
    perfect = true_value(places)
    within(explained_of_returns(states, perfect), TRUE_CEILING)
    within(explained_of_true_values(states, perfect), 1.0)
    within(mean_error(states, perfect), 0.0)
    for found in (agreement(states, perfect), agreement_of_differences(states, perfect)):
        within(found.correlation, 1.0)
        within(found.slope, 1.0)
    assert root_mean_square_error(states, perfect).value < 0.05


def test_a_constant_critic_explains_nothing(sampled: tuple[States, np.ndarray]) -> None:
    states, _ = sampled
    constant = np.full(len(states), 0.7)
    assert explained_of_returns(states, constant).value == pytest.approx(0.0, abs=1e-9)
    assert explained_of_true_values(states, constant).value == pytest.approx(0.0, abs=1e-9)
    assert np.isnan(agreement(states, constant).correlation.value)
    assert auroc(states, constant, states.returns > 0).value == 0.5
    within(mean_error(states, constant), 0.7 - float(np.average(true_value(PLACES), weights=visits())))


def test_a_wrong_critic_has_its_true_figures(sampled: tuple[States, np.ndarray]) -> None:
    states, places = sampled
    values, of_places, weights = wrong_critic(places), wrong_critic(PLACES), visits()
    error = variance(of_places - true_value(PLACES), weights)
    known = variance(true_value(PLACES), weights)
    within(explained_of_true_values(states, values), 1 - error / known)
    mean = float(np.average(true_value(PLACES), weights=weights))
    spread = mean * (1 - mean)
    within(explained_of_returns(states, values), TRUE_CEILING - error / spread)
    joint = (
        np.average(of_places * true_value(PLACES), weights=weights) - np.average(of_places, weights=weights) * mean
    ) / variance(of_places, weights)
    within(agreement(states, values).slope, joint)
    within(agreement(states, values).correlation, joint * np.sqrt(variance(of_places, weights) / known))
    within(mean_error(states, values), float(np.average(of_places - true_value(PLACES), weights=weights)))
    square = float(np.average((of_places - true_value(PLACES)) ** 2, weights=weights))
    within(root_mean_square_error(states, values), np.sqrt(square))


def test_differences_are_those_of_the_true_values(sampled: tuple[States, np.ndarray]) -> None:
    states, places = sampled
    values = wrong_critic(places)
    before, after = neighbors(states)
    assert (states.responses[before] == states.responses[after]).all()
    assert (states.positions[before] < states.positions[after]).all()
    own, true = (of[after] - of[before] for of in (values, true_value(places)))
    found = agreement_of_differences(states, values)
    within(found.correlation, float(np.corrcoef(own, true)[0, 1]))
    within(found.slope, float(np.polyfit(own, true, 1)[0]))
    # The noise of two continuations hides most of the plain correlation.
    plain = np.corrcoef(own, states.true_values[after] - states.true_values[before])[0, 1]
    assert found.correlation.value > plain + 0.05


def test_auroc_and_calibration_of_the_process(sampled: tuple[States, np.ndarray]) -> None:
    states, places = sampled
    weights, chances = visits(), true_value(PLACES)
    high, low = weights * chances, weights * (1 - chances)
    truth = (high * (np.cumsum(low) - 0.5 * low)).sum() / (high.sum() * low.sum())
    within(auroc(states, true_value(places), states.returns > 0), truth)
    rows = calibration(states, true_value(places), bins=5)
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    assert [row.value for row in rows] == sorted(row.value for row in rows)
    for row in rows:
        assert row.true_value == pytest.approx(row.value, abs=0.05)
        assert row.returns == pytest.approx(row.value, abs=0.12)


def test_intervals_hold_the_ceiling_at_their_rate() -> None:
    """80 responses, 2 and 2 continuations: 95 % of the intervals hold the truth; the bootstrap of so few is known to lack some."""
    rng = np.random.default_rng(5)
    held, values = [], []
    for _ in range(150):
        found = ceiling(walks(rng, 80, 2)[0])
        held.append(found.low <= TRUE_CEILING <= found.high)
        values.append((found.value, found.error))
    assert 0.86 <= np.mean(held) <= 0.99
    means, errors = np.array(values).T
    # The standard error is that of the estimates, and what few clusters take off the variances is less than half of it.
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.25)
    assert abs(np.mean(means) - TRUE_CEILING) < 0.5 * np.std(means)


def states_by_hand() -> States:
    return States(
        returns=np.array([1.0, 1.0, 0.0]),
        first=np.array([0.5, 1.0, 0.5]),
        second=np.array([0.5, 0.5, 0.0]),
        weights=np.array([1.0, 3.0, 2.0]),
        clusters=np.array([0, 0, 1]),
        responses=np.array([7, 7, 8]),
        positions=np.array([0, 2, 0]),
        lengths=np.array([4, 4, 2]),
    )


def test_numbers_worked_by_hand() -> None:
    states = states_by_hand()
    # Means 4/6, 4.5/6, 2/6; Var(G) = 4/6 - 16/36 = 8/36; Cov(h1, h2) = (0.25 + 1.5) / 6 - 9/36 = 1.5/36.
    assert ceiling(states).value == pytest.approx(1.5 / 8)
    values = np.array([0.5, 1.0, 0.0])
    # G - C: 0.5, 0, 0 with weights 1, 3, 2: 0.25/6 - 0.25/36 = 1.25/36.
    assert explained_of_returns(states, values).value == pytest.approx(1 - 1.25 / 8)
    # C - V: 0, 0.25, -0.25.
    assert mean_error(states, values).value == pytest.approx((0.75 - 0.5) / 6)
    # Products of the errors against both halves: 0, 0, 0.
    assert root_mean_square_error(states, values).value == 0.0
    assert auroc(states, values, states.returns > 0).value == 1.0
    assert auroc(states, -values, states.returns > 0).value == 0.0
    # By response the first counts 1/4 and 3/4, the second 1.
    assert states.by_response().weights.tolist() == [0.25, 0.75, 1.0]
    assert [pair.tolist() for pair in neighbors(states)] == [[0], [1]]
    # Two clusters are too few for an error.
    assert np.isnan(ceiling(states).error)


def test_calibration_keeps_equal_values_together() -> None:
    rows = calibration(states_by_hand(), np.array([0.3, 0.3, 0.9]), bins=10)
    assert [(row.share, row.value) for row in rows] == [
        (pytest.approx(4 / 6), pytest.approx(0.3)),
        (pytest.approx(2 / 6), pytest.approx(0.9)),
    ]
    assert [row.returns for row in rows] == [1.0, 0.0]


@given(seed=st.integers(0, 10**6), offset=st.floats(-3, 3), scale=st.floats(0.1, 4))
def test_offsets_scales_order_and_doubled_states_change_nothing(seed: int, offset: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    states, places = walks(rng, 12, 3)
    values = wrong_critic(places) + 0.05 * rng.normal(size=len(places))
    before = explained_of_returns(states, values).value
    assert explained_of_returns(states, values + offset).value == pytest.approx(before, abs=1e-6, nan_ok=True)
    moved = replace(states, **{name: getattr(states, name) * scale + offset for name in ("returns", "first", "second")})
    assert explained_of_returns(moved, values * scale).value == pytest.approx(before, abs=1e-6, nan_ok=True)
    assert ceiling(moved).value == pytest.approx(ceiling(states).value, abs=1e-6, nan_ok=True)
    order = rng.permutation(len(states))
    shuffled = agreement_of_differences(states.where(order), values[order])
    assert shuffled.slope.value == pytest.approx(agreement_of_differences(states, values).slope.value, abs=1e-9)
    doubled = states.where(np.repeat(np.arange(len(states)), 2))
    assert ceiling(doubled).value == pytest.approx(ceiling(states).value, abs=1e-9, nan_ok=True)
    assert auroc(doubled, np.repeat(values, 2), doubled.returns > 0).value == pytest.approx(
        auroc(states, values, states.returns > 0).value, nan_ok=True
    )
    assert auroc(states, np.exp(values), states.returns > 0).value == pytest.approx(
        auroc(states, values, states.returns > 0).value, nan_ok=True
    )


def test_equal_returns_leave_nothing_to_explain() -> None:
    states = replace(states_by_hand(), returns=np.ones(3))
    assert np.isnan(ceiling(states).value)
    assert np.isnan(explained_of_returns(states, np.zeros(3)).value)
    assert np.isnan(auroc(states, np.zeros(3), states.returns > 0).value)
    empty = states.where(np.zeros(3, bool))
    assert np.isnan(ceiling(empty).value)
    assert np.isnan(auroc(empty, np.zeros(0), np.zeros(0, bool)).value)
    assert calibration(empty, np.zeros(0)) == []


def test_misfits_are_refused() -> None:
    states = states_by_hand()
    for function in (explained_of_returns, explained_of_true_values, agreement, mean_error, calibration):
        with pytest.raises(ValueError, match="there are 3 states"):
            function(states, np.zeros(4))
    with pytest.raises(ValueError, match="one shape"):
        replace(states, first=np.zeros(2))
    with pytest.raises(ValueError, match="positive"):
        replace(states, weights=np.array([1.0, 0.0, 1.0]))
