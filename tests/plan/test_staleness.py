"""The closed form of staleness against the played pipeline, on settings that nobody tuned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tppo_rl.plan.lengths import fixed, lognormal
from tppo_rl.plan.pipeline import Pipeline, simulate
from tppo_rl.plan.staleness import mean_age, staleness_law

NUMBER = 40


def random_pipeline(generator: np.random.Generator, *, whole: bool) -> Pipeline:
    mean = generator.uniform(20, 200)
    lengths = lognormal(mean, generator.uniform(0.4, 1.2), int(mean * generator.uniform(4, 16)))
    window = lengths.longest if whole else int(generator.choice([8, 16, 32, 64]))
    slots = int(generator.choice([16, 32, 64, 128]))
    batch = int(slots * generator.uniform(4, 80))
    bound = int(generator.choice([1, 2, 4]))
    # Loads around 1 are neither here nor there: a queue takes hundreds of updates to fill.
    load = float(generator.choice([generator.uniform(0.2, 0.9), generator.uniform(1.15, 2.5)]))
    return Pipeline(
        lengths=lengths,
        window=window,
        slots=slots,
        batch_tokens=batch,
        # Whole responses: so large that no update waits for them.
        max_staleness=10_000 if whole else bound,
        engine_steps=min(window, 32),
        step_seconds=1.0,
        weight_seconds=0.0,
        update_seconds=load * batch / slots,
        token_seconds=0.0,
        max_queued_batches=float(generator.choice([1, 2])) if whole else None,
    )


def test_windows_are_as_old_as_the_law_says() -> None:
    generator = np.random.default_rng(20)
    errors = []
    for seed in range(NUMBER):
        pipeline = random_pipeline(generator, whole=False)
        played, law = simulate(pipeline, updates=120, seed=seed), staleness_law(pipeline)
        assert law is not None
        errors.append(abs(played.staleness_mean - law.mean))
    assert np.mean(np.array(errors) <= 0.15) >= 0.85
    assert np.median(errors) <= 0.05


def test_partial_rollouts_are_as_old_as_the_tail_makes_them() -> None:
    """Few responses make the sum of squares of a tail, so that runs of hundreds of updates scatter about their mean."""
    generator = np.random.default_rng(21)
    ratios = []
    for seed in range(20):
        pipeline = random_pipeline(generator, whole=True)
        law = staleness_law(pipeline)
        assert law is not None
        ratios.append(simulate(pipeline, updates=150, seed=seed).staleness_mean / law.mean)
    assert np.median(ratios) == pytest.approx(1.0, abs=0.15)
    assert np.mean(np.abs(np.array(ratios) - 1) <= 0.25) >= 0.75


def test_age_in_a_fragment() -> None:
    assert mean_age(fixed(10), 10) == 4.5
    # Fragments of 4, 4 and 2 tokens.
    assert mean_age(fixed(10), 4) == (2 * (0 + 1 + 2 + 3) + (0 + 1)) / 10
    tail = lognormal(50.0, 1.0, 400)
    numbers = np.arange(tail.longest + 1)
    expected = (tail.expected(numbers**2) / tail.mean - 1) / 2
    assert mean_age(tail, tail.longest) == pytest.approx(expected)


def test_there_is_no_law_where_updates_wait_for_whole_responses() -> None:
    pipeline = random_pipeline(np.random.default_rng(3), whole=True)
    assert staleness_law(replace(pipeline, max_staleness=1)) is None
