from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from tppo_rl.experiment.plots import draw_band


def test_a_band_is_the_mean_and_the_range_up_to_the_end_of_the_shortest_curve() -> None:
    axes = Figure().subplots()
    low = (np.array([0.0, 10.0]), np.array([0.0, 1.0]))
    high = (np.array([0.0, 4.0, 20.0]), np.array([0.5, 0.9, 0.9]))
    draw_band(axes, [low, high], color="C0", label="both")
    (line,) = axes.lines
    x, y = (np.asarray(data) for data in line.get_data())
    assert (x[0], x[-1]) == (0.0, 10.0)
    assert (y[0], y[-1]) == pytest.approx((0.25, 0.95))
    (band,) = axes.collections
    corners = band.get_paths()[0].vertices
    assert corners[:, 1].min() == 0.0
    assert corners[:, 1].max() == pytest.approx(1.0)
