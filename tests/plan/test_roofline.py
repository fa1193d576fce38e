from __future__ import annotations

import numpy as np
import pytest

from tppo_rl.bench.workloads import random_model
from tppo_rl.core.errors import OptionError
from tppo_rl.plan.roofline import (
    BANDWIDTH_REACH,
    DEVICES,
    LEARNER_REACH,
    STEP_OVERHEAD,
    Device,
    roofline_costs,
    shape_of_config,
    shape_of_model,
)
from tppo_rl.plan.windows import LearnerWork, PassWork


def test_parameters_are_those_of_the_matrices() -> None:
    model = random_model("tiny")
    shape = shape_of_config(model.config.to_dict())
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    assert shape.parameters == matrices  # Input and output embeddings are one here.
    assert shape_of_model("qwen2.5-32b").parameters == pytest.approx(32.0e9, rel=0.01)
    assert shape_of_model("Qwen2.5-7B").parameters == pytest.approx(7.07e9, rel=0.01)
    assert shape_of_model("tppo_rl/arithmetic-chain").layers == 4


def test_small_batches_are_bound_by_bytes_and_prefill_by_operations() -> None:
    costs, shape = roofline_costs("h100", "qwen2.5-7b"), shape_of_model("qwen2.5-7b")
    step = float(costs.engine.seconds(1, 0, 0))
    assert step == pytest.approx(2 * shape.parameters / (3.35e12 * BANDWIDTH_REACH) + STEP_OVERHEAD)
    assert costs.engine.seconds(16, 0, 0) == pytest.approx(step)
    assert costs.engine.seconds(16, 0, 20000) > 10 * step
    many = costs.engine.seconds(np.array([1, 64, 1024]), np.array([1e3, 64e3, 1024e3]), np.zeros(3))
    assert np.all(np.diff(many) > 0)
    # A token of 28 layers has keys and values of 4 heads of 128, two bytes each.
    assert shape.cache_bytes_per_token == 28 * 2 * 4 * 128 * 2


def test_a_faster_gpu_or_more_of_them_are_faster() -> None:
    h100, h200, two = (
        roofline_costs("h100", "qwen2.5-7b"),
        roofline_costs("h200", "qwen2.5-7b"),
        roofline_costs("h100", "qwen2.5-7b", 2),
    )
    assert h200.engine.seconds(32, 1e5, 0) < h100.engine.seconds(32, 1e5, 0)
    work = LearnerWork(*(PassWork(1.0, 1000.0, 0.0),) * 3)
    seconds = h100.learner.seconds(work, 1.0)
    assert seconds == pytest.approx(7 * 2 * 7.07e9 * 1000 / (DEVICES["h100"].peak * LEARNER_REACH), rel=0.01)
    assert two.learner.seconds(work, 1.0) == pytest.approx(seconds / 2)


@pytest.mark.parametrize(
    ("device", "model", "words"),
    [("h1000", "qwen2.5-7b", "costs='h1000'"), ("h100", "./nothing", "model='./nothing'")],
)
def test_bad_values_are_named(device: str, model: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        roofline_costs(device, model)


def test_weights_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DEVICES, "small", Device(1e12, 1e14, 24e9))
    with pytest.raises(OptionError, match=r"tensor_parallel=1: .* 64 GB, and 24 GB are there; give at least 3"):
        roofline_costs("small", "qwen2.5-32b")
    assert roofline_costs("small", "qwen2.5-32b", 3).source == "qwen2.5-32b on 3 x small"
