from __future__ import annotations

import numpy as np
import pytest
import torch

from tppo_rl.learner.collective import SingleLearner, current_collective
from tppo_rl.learner.metric_sums import MetricSums
from tppo_rl.learner.optimizers import GradientStep, make_adamw, ramped_lr, squared_norm
from tppo_rl.learner.sharding import gather_optimizer_state


def make_step(max_norm: float | None) -> tuple[torch.nn.Linear, GradientStep]:
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = make_adamw(model.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    return model, GradientStep(optimizer, max_norm=max_norm, collective=SingleLearner(), name="linear")


def test_equals_plain_adamw_with_clipping() -> None:
    model, step = make_step(max_norm=0.5)
    plain, _ = make_step(max_norm=None)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.05, betas=(0.9, 0.99), weight_decay=0.01)
    inputs = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(1))
    for batch in inputs:
        step.zero()
        for part in batch.split(2):
            model(part).square().sum().backward()
        report = step.apply(lr=0.05)
        optimizer.zero_grad()
        plain(batch).square().sum().backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        assert report == (pytest.approx(float(norm)), True)
    for left, right in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_norm_of_many_elements_keeps_its_digits() -> None:
    # 0.1 in float32, squared and summed exactly; one float32 pass over as many elements is off by 7e-4.
    many = torch.full((10_000_000,), 0.1)
    exact = len(many) * float(many[0]) ** 2
    assert float(squared_norm([many])) == pytest.approx(exact, rel=5e-5)
    assert float(squared_norm(many.split(333_333))) == pytest.approx(exact, rel=5e-5)
    assert float(squared_norm([torch.tensor([3.0]), torch.tensor([[4.0]])])) == 25.0
    assert float(squared_norm([torch.tensor([1.0, float("nan")])])) != 1.0


def test_moments_in_bfloat16_are_saved_as_float32() -> None:
    model, step = make_step(max_norm=1.0)
    halved = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    optimizer = make_adamw(halved.parameters(), lr=0.1, betas=(0.9, 0.99), weight_decay=0.01)
    half_step = GradientStep(optimizer, max_norm=1.0, collective=SingleLearner(), name="halved")
    halved(torch.ones(4, 3, dtype=torch.bfloat16)).float().square().sum().backward()
    assert half_step.apply(lr=0.05).applied
    assert {moment.dtype for moment in optimizer.state[halved.weight].values() if moment.ndim} == {torch.bfloat16}
    saved = gather_optimizer_state(optimizer)
    assert saved["state"][0]["exp_avg"].dtype == np.float32
    assert saved["state"][0]["step"] == 1.0
    entries = {
        i: {name: torch.as_tensor(value) for name, value in entry.items()} for i, entry in saved["state"].items()
    }
    step.optimizer.load_state_dict(saved | {"state": entries})
    assert torch.equal(step.optimizer.state[model.weight]["exp_avg"], optimizer.state[halved.weight]["exp_avg"].float())


def test_gradients_outside_of_the_buffer_are_noticed() -> None:
    model, step = make_step(max_norm=None)
    step.optimizer.zero_grad(set_to_none=True)
    with pytest.raises(AssertionError, match="set to None"):
        step.apply(lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    with pytest.raises(AssertionError, match="replaced"):
        step.apply(lr=0.1)


def test_ramp() -> None:
    assert [ramped_lr(1.0, count, 4) for count in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert ramped_lr(1.0, 0, 0) == 1.0


def test_tally() -> None:
    metric_sums = MetricSums(["tokens", "nothing"], ["largest", "unseen"])
    metric_sums.add("tokens", 2)
    metric_sums.add("tokens", torch.tensor([1.5, 2.5]))
    metric_sums.largest("largest", -3.0)
    metric_sums.largest("largest", torch.tensor([-7.0, -2.0]))
    metric_sums.largest("unseen", torch.zeros(0))
    assert metric_sums.reduce(SingleLearner()) == {
        "tokens": 6.0,
        "nothing": 0.0,
        "largest": -2.0,
        "unseen": float("-inf"),
    }
    with pytest.raises(KeyError):
        metric_sums.add("other", 1.0)


def test_alone_there_is_nothing_to_exchange() -> None:
    assert isinstance(current_collective(), SingleLearner)
