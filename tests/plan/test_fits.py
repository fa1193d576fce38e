from __future__ import annotations

from dataclasses import astuple

import numpy as np
import pytest

from tppo_rl.plan.costs import AffineEngineCost
from tppo_rl.plan.fits import fit_engine, fit_pass
from tppo_rl.plan.windows import PassWork

ENGINE = AffineEngineCost(1e-3, 1e-4, 1e-7, 2e-5, 0.02)


def test_a_fit_finds_the_curve_through_noise() -> None:
    rng = np.random.default_rng(0)
    running, context, prompts = rng.integers(1, 65, 200), rng.integers(100, 20000, 200), rng.integers(0, 200, 200)
    seconds = ENGINE.seconds(running, context, prompts) * rng.normal(1.0, 0.01, 200)
    fitted = fit_engine(running, context, prompts, seconds, weight_update=0.02)  # type: ignore[arg-type]
    assert astuple(fitted) == pytest.approx(astuple(ENGINE), rel=0.1)


def test_a_fit_never_goes_below_zero() -> None:
    fitted = fit_engine([8, 16, 32], [0, 0, 0], [0, 0, 0], [1e-3, 2.5e-3, 6e-3])
    assert min(astuple(fitted)) == 0
    assert fitted.per_sequence > 0
    passes = [PassWork(count, 50 * count, 2500 * count) for count in (1, 10, 100)]
    assert fit_pass(passes, [0.5, 5.0, 50.0]).seconds(passes[1], 1) == pytest.approx(5.0, rel=1e-6)
