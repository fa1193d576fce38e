"""Errors of means against the textbook's, clusters that are resampled whole, and the ends of the interval."""

from __future__ import annotations

import numpy as np
import pytest

from tppo_rl.maths.answer_statistics import mean_over_problems
from tppo_rl.maths.cluster_bootstrap import cluster_sums, drawn_counts, estimate


def mean(sums: np.ndarray) -> np.ndarray:
    return sums[..., 1] / sums[..., 0]


def test_the_error_of_a_mean_is_that_of_the_textbook() -> None:
    values = np.random.default_rng(0).exponential(size=400)
    found = estimate(cluster_sums([values], np.ones(400), np.arange(400)), mean)
    assert found.value == pytest.approx(values.mean())
    assert found.error == pytest.approx(values.std() / 20, rel=0.06)
    assert found.n == 400
    # The same interval by scipy, value by value.
    expected = mean_over_problems(values)
    assert found.low == pytest.approx(expected.low, abs=0.1 * found.error)
    assert found.high == pytest.approx(expected.high, abs=0.1 * found.error)


def test_clusters_are_drawn_whole() -> None:
    values = np.random.default_rng(1).normal(size=50)
    once = estimate(cluster_sums([values], np.ones(50), np.arange(50)), mean)
    tenfold = estimate(cluster_sums([values.repeat(10)], np.ones(500), np.arange(50).repeat(10) * 7 - 3), mean)
    assert (tenfold.value, tenfold.error) == (pytest.approx(once.value), pytest.approx(once.error))
    apart = estimate(cluster_sums([values.repeat(10)], np.ones(500), np.arange(500)), mean)
    assert apart.error == pytest.approx(once.error / np.sqrt(10), rel=0.1)


def test_weights_are_counts() -> None:
    clusters = np.array([0, 0, 1, 2, 2])
    values, counts = np.array([1.0, 2.0, 3.0, 4.0, 5.0]), np.array([1, 3, 2, 1, 2])
    weighted = cluster_sums([values, values**2], counts.astype(float), clusters)
    repeated = cluster_sums([values.repeat(counts), values.repeat(counts) ** 2], np.ones(9), clusters.repeat(counts))
    np.testing.assert_allclose(weighted, repeated)
    assert weighted[:, 0].tolist() == [4.0, 2.0, 3.0]
    with pytest.raises(ValueError, match="must have the shape"):
        cluster_sums([values], counts.astype(float), clusters[:4])


def test_every_drawing_has_as_many_clusters() -> None:
    counts = drawn_counts(7, drawings=100)
    assert (counts.sum(1) == 7).all()
    assert counts.std() > 0.5
    assert (counts == drawn_counts(7, drawings=100)).all()


def test_too_few_clusters_and_undefined_numbers() -> None:
    two = estimate(cluster_sums([np.array([1.0, 2.0])], np.ones(2), np.arange(2)), mean)
    assert two.value == 1.5
    assert np.isnan(two.error)
    constant = estimate(cluster_sums([np.ones(9)], np.ones(9), np.arange(9)), mean)
    assert (constant.error, constant.low, constant.high) == (0.0, 1.0, 1.0)
    undefined = estimate(cluster_sums([np.ones(9)], np.ones(9), np.arange(9)), lambda sums: sums[..., 1] * np.nan)
    assert np.isnan(undefined.value)
    assert estimate(np.zeros((0, 2)), mean).n == 0
