"""Forecasts of a final accuracy against curves whose end is known."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tppo_rl.maths.final_accuracy import (
    LEVEL,
    RANKS,
    FinalAccuracy,
    _Curves,
    _Prior,
    curve,
    forecast_final_accuracy,
    interval_by_ranks,
    quantile,
    rank_of,
)

NOTHING = np.zeros((0, 3))


def points(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array(rows, np.float64)


def simulated_run(generator: np.random.Generator, evaluate_every: float) -> tuple[np.ndarray, np.ndarray, float]:
    """The first fifth of a run, and its accuracy on 2,000 prompts at its end.

    The curve is logistic in the tokens, not in their logarithm as the forecast takes it, and drifts at random. Training responses come in
    groups of eight to one prompt, and training prompts are a bit easier or harder than held-out ones.
    """
    start = generator.uniform(0.05, 0.6)
    gain = (1 - start) * generator.uniform(0.1, 0.98)
    middle, breadth = generator.uniform(0.1, 0.7), generator.uniform(0.05, 0.2)
    shares = (np.arange(40) + 0.5) / 40
    rise = stats.logistic.cdf(shares, middle, breadth) - stats.logistic.cdf(0, middle, breadth)
    accuracy = np.clip(start + gain * rise + 0.005 * np.cumsum(generator.normal(size=40)), 0.01, 0.99)
    easier = generator.normal(0, 0.02)
    training = []
    for share, p in zip(shares[:8], accuracy[:8], strict=True):
        groups = generator.integers(3, 12)
        right = generator.binomial(8, generator.beta(3 * p, 3 * (1 - p), groups)).sum() / (8 * groups)
        training.append((share, float(np.clip(right + easier, 0, 1)), 8 * groups))
    at = np.arange(0, 0.2, evaluate_every)
    heldout = [
        (share, generator.binomial(256, np.interp(share, [0, *shares], [start, *accuracy])) / 256, 256) for share in at
    ]
    return np.array(heldout), np.array(training), generator.binomial(2000, accuracy[-1]) / 2000


def drawn_run(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
    """The first fifth of a run whose curve and noise are what the forecast takes for possible."""
    prior = _Prior()
    parameters = _Curves(NOTHING, NOTHING, prior).parameters(generator.uniform(size=(1, 6)))
    shares = np.array([0.0, 0.05, 0.1, 0.15])
    p = curve(parameters, shares)[0]
    seen = p + generator.normal(size=4) * np.sqrt(p * (1 - p) / 256 + np.array([0, *[prior.curve**2] * 3]))
    end = curve(parameters, np.ones(1))[0, 0]
    end = np.clip(end + prior.run * generator.standard_t(4) * np.sqrt(end * (1 - end)), 0, 1)
    heldout = np.stack([shares, np.clip(seen, 0, 1), np.full(4, 256.0)], axis=1)
    return heldout, NOTHING, generator.binomial(2000, end) / 2000


def forecasts_and_truths(number: int, seed: int) -> list[tuple[FinalAccuracy, float]]:
    found = []
    for index in range(number):
        generator = np.random.default_rng([seed, index])
        heldout, training, truth = simulated_run(generator, 0.05 if index % 2 else 0.25)
        found.append((forecast_final_accuracy(heldout, training, 2000, seed=index), truth))
    return found


def error_of(number: int) -> float:
    """Three standard errors of the share of so many intervals that hold."""
    return float(3 * np.sqrt(LEVEL * (1 - LEVEL) / number))


def test_the_ends_of_curves_of_another_form_lie_inside() -> None:
    inside = [found.low <= truth <= found.high for found, truth in forecasts_and_truths(40, 0)]
    assert np.mean(inside) >= LEVEL - error_of(40)


@pytest.mark.slow
def test_hundreds_of_curves_of_another_form_lie_inside_and_moved_intervals_hold_as_many_as_they_say() -> None:
    number = 400
    made = forecasts_and_truths(number, 1)
    assert np.mean([found.low <= truth <= found.high for found, truth in made]) >= LEVEL - error_of(number)
    inside = 0
    for half in (0, 1):
        ranks = [rank_of(found.quantiles, truth) for found, truth in made[half::2]]
        for found, truth in made[1 - half :: 2]:
            interval = interval_by_ranks(found.quantiles, ranks)
            assert interval is not None
            inside += interval[0] <= truth <= interval[1]
    assert abs(inside / number - LEVEL) <= error_of(number)


@pytest.mark.slow
def test_curves_that_are_drawn_as_the_forecast_takes_them_are_held_exactly_as_often_as_it_says() -> None:
    inside = []
    for index in range(400):
        heldout, training, truth = drawn_run(np.random.default_rng([2, index]))
        found = forecast_final_accuracy(heldout, training, 2000, seed=index)
        inside.append(found.low <= truth <= found.high)
    assert abs(np.mean(inside) - LEVEL) <= error_of(400)


def test_draws_are_those_of_the_model_that_is_written_down() -> None:
    heldout, training = points((0, 0.3, 256), (0.1, 0.36, 256), (0.2, 0.5, 256)), points((0.15, 0.45, 64))
    made = [forecast_final_accuracy(heldout, training, 100_000, seed=seed) for seed in range(8)]
    found = np.mean([[one.low, one.median, one.high] for one in made], axis=0)
    # Without steps and moves: draws of the prior, weighted with the likelihood.
    prior, generator = _Prior(), np.random.default_rng(0)
    parameters = _Curves(heldout, training, prior).parameters(generator.uniform(size=(200_000, 6)))
    p = np.clip(curve(parameters, np.array([0.0, 0.1, 0.2, 0.15])) + parameters[:, 4:5] * [0, 0, 0, 1], 0.005, 0.995)
    fewer = np.stack([np.full(len(p), 1 / 256)] * 3 + [parameters[:, 5] / 64], axis=1)
    spread = np.sqrt(p * (1 - p) * fewer + np.array([0, 0.03, 0.03, 0.03]) ** 2)
    weights = np.prod(stats.norm.pdf([0.3, 0.36, 0.5, 0.45], p, spread), axis=1)
    ends = curve(parameters, np.ones(1))[:, 0]
    ends = np.clip(ends + 0.06 * generator.standard_t(4, len(ends)) * np.sqrt(ends * (1 - ends)), 0, 1)
    order = np.argsort(ends)
    ranks = np.cumsum(weights[order]) / weights.sum()
    expected = [ends[order][np.searchsorted(ranks, rank)] for rank in (0.05, 0.5, 0.95)]
    assert found == pytest.approx(expected, abs=0.018)


def test_a_flat_start_leaves_everything_open_and_says_so() -> None:
    found = forecast_final_accuracy(points((0, 0.3, 2000), (0.1, 0.3, 2000), (0.2, 0.3, 2000)), NOTHING, 2000)
    assert found.low < 0.32
    assert found.high > 0.9
    assert not found.tells


def test_a_curve_that_has_settled_is_foretold_closely() -> None:
    settled = points((0, 0.3, 2000), (0.05, 0.7, 2000), (0.1, 0.78, 2000), (0.15, 0.8, 2000), (0.2, 0.8, 2000))
    found = forecast_final_accuracy(settled, NOTHING, 2000)
    assert 0.7 < found.low < 0.8 < found.high < 0.92
    assert found.tells
    # Few prompts at the end add an error of their own.
    few = forecast_final_accuracy(settled, NOTHING, 20)
    assert few.high - few.low > 1.5 * (found.high - found.low)


def test_a_curve_that_falls_is_not_foretold_to_rise() -> None:
    found = forecast_final_accuracy(points((0, 0.5, 512), (0.1, 0.4, 512), (0.2, 0.2, 512)), NOTHING, 512)
    assert found.high < 0.4


def test_training_responses_do_where_nothing_was_evaluated() -> None:
    training = np.stack([np.arange(1, 20) / 100, 0.3 + np.arange(1, 20) / 100, np.full(19, 64.0)], axis=1)
    rising = forecast_final_accuracy(NOTHING, training, 256)
    training[:, 1] = 0.3
    flat = forecast_final_accuracy(NOTHING, training, 256)
    assert rising.low > flat.low + 0.05
    assert flat.high - flat.low > rising.high - rising.low


def test_the_order_of_evaluations_says_nothing() -> None:
    heldout = points((0, 0.3, 256), (0.1, 0.4, 256), (0.2, 0.5, 256))
    assert forecast_final_accuracy(heldout[::-1], NOTHING, 256) == forecast_final_accuracy(heldout, NOTHING, 256)


@pytest.mark.parametrize(
    ("heldout", "training", "prompts", "words"),
    [
        (NOTHING, NOTHING, 8, "no accuracy"),
        (points((0, 0.3, 8)), NOTHING, 0, "prompts=0"),
        (points((1.0, 0.3, 8)), NOTHING, 8, "heldout: shares"),
        (points((0, 0.3, 8)), points((0.1, 1.1, 8)), 8, "training: shares"),
        (points((0, np.nan, 8)), NOTHING, 8, "heldout: shares"),
        (np.zeros((1, 2)), NOTHING, 8, r"\[N, 3\], got \[1, 2\]"),
    ],
)
def test_what_is_no_curve_is_refused(heldout: np.ndarray, training: np.ndarray, prompts: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        forecast_final_accuracy(heldout, training, prompts)


def test_ranks_and_quantiles_are_each_others_inverse() -> None:
    uniform = tuple(RANKS)
    assert FinalAccuracy(uniform, tells=True).low == pytest.approx(0.05)
    assert FinalAccuracy(uniform, tells=True).high == pytest.approx(0.95)
    assert rank_of(uniform, quantile(uniform, 0.33)) == pytest.approx(0.33)
    assert rank_of(uniform, 2.0) == 1.0
    # Half of what is possible is 1: its ranks are 0.5 to 1.
    assert rank_of(tuple(np.minimum(2 * RANKS, 1.0)), 1.0) == pytest.approx(0.75)


def test_an_interval_moves_to_where_the_truth_of_others_lay() -> None:
    uniform = tuple(RANKS)
    # With 19 others, the lowest and the highest; with 39, the second of each side.
    assert interval_by_ranks(uniform, [0.4, 0.6, *[0.5] * 17]) == pytest.approx((0.4, 0.6))
    assert interval_by_ranks(uniform, [0.1, 0.4, 0.6, 0.9, *[0.5] * 35]) == pytest.approx((0.4, 0.6))
    assert interval_by_ranks(uniform, [0.5] * 18) is None
