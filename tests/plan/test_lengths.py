from __future__ import annotations

import numpy as np
import pytest

from tppo_rl.core.errors import OptionError
from tppo_rl.plan.lengths import ResponseLengths, fixed, lognormal, named_lengths, uniform
from tppo_rl.rollout.simulated_engine import draw_lognormal_length


@pytest.mark.parametrize("cap", [60, 400])
def test_a_lognormal_is_what_the_simulated_engine_draws(cap: int) -> None:
    lengths = lognormal(40.0, 1.0, cap)
    draw, generator = draw_lognormal_length(40.0, 1.0), np.random.default_rng(0)
    drawn = np.minimum([draw(generator) for _ in range(20000)], cap)
    assert lengths.mean == pytest.approx(drawn.mean(), rel=0.02)
    for length in (1, 10, 40, cap - 1):
        assert lengths.survival[length] == pytest.approx((drawn > length).mean(), abs=0.01)
    own = [lengths.draw(generator) for _ in range(5000)]
    assert np.mean(own) == pytest.approx(lengths.mean, rel=0.05)


def test_moments_and_order_statistics_of_a_uniform_distribution() -> None:
    lengths = uniform(1, 10)
    assert lengths.mean == pytest.approx(5.5)
    assert lengths.survival.tolist() == pytest.approx([1 - t / 10 for t in range(11)])
    # E[max of m] of 1 .. n is n - sum over k < n of (k / n)^m.
    for responses in (1, 3, 50):
        assert lengths.any_longer(responses).sum() == pytest.approx(
            10 - sum((k / 10) ** responses for k in range(1, 10))
        )


def test_the_longest_response_grows_with_their_number_up_to_the_cap() -> None:
    lengths = lognormal(48.0, 1.1, 800)
    largest = [lengths.any_longer(count).sum() for count in (1, 4, 64, 10**6)]
    assert largest == sorted(largest)
    assert largest[0] == pytest.approx(lengths.mean)
    assert largest[-1] == pytest.approx(800, rel=1e-3)
    assert fixed(7).any_longer(64).sum() == pytest.approx(7)


def test_a_cap_moves_what_is_above_it_to_it() -> None:
    capped = uniform(1, 10).capped(4)
    assert capped.probabilities.tolist() == pytest.approx([0, 0.1, 0.1, 0.1, 0.7])
    assert uniform(1, 10).capped(10).longest == 10
    assert fixed(12).step == 12
    assert ResponseLengths(np.array([0, 0, 0, 0, 1, 0, 3]), "here").step == 2


def test_names_give_distributions() -> None:
    assert named_lengths("fixed:5").mean == 5
    assert named_lengths("uniform:2,4", cap=3).probabilities.tolist() == pytest.approx([0, 0, 1 / 3, 2 / 3])
    assert named_lengths("lognormal:20,0.5").longest <= 16 * 20
    assert named_lengths("lognormal:20,0.5", 30).longest == 30


@pytest.mark.parametrize(
    "text",
    [
        "normal:3,1",
        "lognormal:20",
        "lognormal:-3,1",
        "lognormal:20,0",
        "uniform:4,2",
        "fixed:0",
        "fixed:x",
        "uniform:0,3",
    ],
)
def test_bad_names_and_numbers_are_named(text: str) -> None:
    with pytest.raises(OptionError, match="lengths="):
        named_lengths(text)


@pytest.mark.parametrize("counts", [[], [1.0], [1.0, 2.0], [0.0, 0.0], [0.0, -1.0], [0.0, float("nan")]])
def test_a_histogram_needs_counts(counts: list[float]) -> None:
    with pytest.raises(OptionError, match="histogram"):
        ResponseLengths(np.array(counts), "a file")
