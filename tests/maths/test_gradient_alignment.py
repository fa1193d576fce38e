"""Cosines and noise of gradients that were made up, so that both are known; numbers by hand; invariances."""

from __future__ import annotations

import numpy as np
import pytest

from tppo_rl.maths.gradient_alignment import alignment

COORDINATES, GROUPS, STATES, DRAWS = 40, 16, 50, 4
AMONG_STATES, AMONG_DRAWS = 0.3, 0.5
"""Standard deviations of each coordinate."""


def made_up(rng: np.random.Generator, direction: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of groups around `direction`, and of an estimator that adds `bias`, of the same samples."""
    of_states = rng.normal(0, AMONG_STATES, (GROUPS, 1, STATES, COORDINATES))
    of_draws = rng.normal(0, AMONG_DRAWS, (GROUPS, 2, STATES, DRAWS, COORDINATES)).mean(3)
    truth = direction + (of_states + of_draws).mean(2)
    other = rng.normal(0, AMONG_STATES, (GROUPS, 1, STATES, COORDINATES))
    return truth + bias + other.mean(2), truth


def test_cosine_and_noise_are_those_that_were_put_in() -> None:
    rng = np.random.default_rng(0)
    direction, bias = rng.normal(0, 0.1, (2, COORDINATES))
    expected = direction @ (direction + bias) / np.linalg.norm(direction) / np.linalg.norm(direction + bias)
    variance = COORDINATES * (AMONG_STATES**2 + AMONG_DRAWS**2)
    cosines, noises, errors = [], [], []
    for _ in range(60):
        gradients, truth = made_up(rng, direction, bias)
        found = alignment(gradients, truth, np.full(GROUPS, STATES), DRAWS)
        cosines.append(found.cosine.value)
        errors.append(found.cosine.error)
        noises.append(alignment(truth, truth, np.full(GROUPS, STATES), DRAWS).tokens_per_signal.value)
    assert np.mean(cosines) == pytest.approx(expected, abs=4 * np.std(cosines) / np.sqrt(60) + 0.005)
    # The jackknife's error is the spread of the estimates.
    assert np.mean(errors) == pytest.approx(np.std(cosines), rel=0.4)
    assert np.mean(noises) == pytest.approx(variance / (direction @ direction), rel=0.06)


def test_the_plain_cosine_would_be_too_low() -> None:
    """Noise of its own makes every gradient longer; the cosine with itself in other samples is 1 all the same."""
    rng = np.random.default_rng(1)
    direction = rng.normal(0, 0.05, COORDINATES)
    one, other = (made_up(rng, direction, np.zeros(COORDINATES))[1] for _ in range(2))
    mean_one, mean_other = one.mean((0, 1)), other.mean((0, 1))
    plain = mean_one @ mean_other / np.linalg.norm(mean_one) / np.linalg.norm(mean_other)
    assert plain < 0.97
    gradients, truth = made_up(rng, direction, np.zeros(COORDINATES))
    found = alignment(gradients, truth, np.full(GROUPS, STATES), DRAWS).cosine
    assert abs(found.value - 1) < 3 * found.error


def test_a_gradient_that_noise_hides_has_no_cosine() -> None:
    rng = np.random.default_rng(3)
    direction = rng.normal(0, 0.1, COORDINATES)
    hidden = 0
    for _ in range(40):
        _, truth = made_up(rng, direction, np.zeros(COORDINATES))
        noise = rng.normal(0, 0.3, truth.shape)
        found = alignment(noise, truth, np.full(GROUPS, STATES), DRAWS)
        assert np.isnan(found.cosine.value) == np.isnan(found.tokens_per_signal.value)
        hidden += np.isnan(found.cosine.value)
        assert np.isnan(alignment(truth, noise, np.full(GROUPS, STATES), DRAWS).cosine.value) == np.isnan(
            found.cosine.value
        )
    # Two standard errors are passed by chance in one of forty, and the jackknife of 16 groups is a little too sure.
    assert hidden >= 35


def test_numbers_worked_by_hand() -> None:
    gradients = np.array([[[1.0, 0.0], [3.0, 0.0]], [[2.0, 2.0], [2.0, 0.0]]])
    truth = np.array([[[1.0, 0.0], [1.0, 0.0]], [[2.0, 0.0], [2.0, 0.0]]])
    found = alignment(gradients, truth, np.array([10.0, 20.0]), 5.0)
    # Means (2, 0) and (2, 1); of the truth (1, 0) and (2, 0). Across groups: 3, 4 and 2.
    assert found.cosine.value == pytest.approx(3.0 / np.sqrt(8.0))
    # Halves: mean squares 5 and 6, products 3 and 4. States: (10 (3 - 4) + 20 (4 - 4)) / 2; draws: (50 * 2 + 100 * 2) / 2.
    assert found.tokens_per_signal.value == pytest.approx((-5 + 150) / 4)
    assert np.isnan(found.cosine.error)


def test_scale_order_and_turns_change_no_cosine() -> None:
    rng = np.random.default_rng(2)
    gradients, truth = made_up(rng, rng.normal(0, 0.2, COORDINATES), rng.normal(0, 0.2, COORDINATES))
    states = np.full(GROUPS, STATES)
    expected = alignment(gradients, truth, states, DRAWS)
    order = rng.permutation(GROUPS)
    turn = np.linalg.qr(rng.normal(size=(COORDINATES, COORDINATES)))[0]
    for changed in (
        alignment(7 * gradients, truth, states, DRAWS),
        alignment(gradients[order], truth[order], states, DRAWS),
        alignment(gradients[:, ::-1], truth[:, ::-1], states, DRAWS),
        alignment(gradients @ turn, truth @ turn, states, DRAWS),
    ):
        assert changed.cosine.value == pytest.approx(expected.cosine.value)
        assert changed.tokens_per_signal.value == pytest.approx(expected.tokens_per_signal.value)
    assert alignment(-gradients, truth, states, DRAWS).cosine.value == pytest.approx(-expected.cosine.value)


def test_misfits_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[K, 2, P\]"):
        alignment(np.zeros((4, 3, 2)), np.zeros((4, 3, 2)), np.ones(4), 1.0)
    with pytest.raises(ValueError, match="two groups or more"):
        alignment(np.zeros((4, 2, 2)), np.zeros((4, 2, 2)), np.ones(3), 1.0)
    nothing = alignment(np.zeros((4, 2, 2)), np.zeros((4, 2, 2)), np.ones(4), 1.0)
    assert np.isnan(nothing.cosine.value)
